// Memory, norms, lookups and packing of the CUDA backend against the naive one.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "ops/cuda_testing.h"
#include "tokenmill/error.h"

namespace tokenmill {
namespace {

TEST(BackendRegistry, UnknownDevicesAndMissingOnesAreErrors) {
  EXPECT_EQ(make_backend("cpu", {.num_threads = 1, .isa = ""})->name(), "cpu");
  for (const char* device : {"", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1x"}) {
    EXPECT_THROW(make_backend(device, {}), Error) << device;
  }
  EXPECT_THROW(make_backend("cuda:99", {}), Error);
  if (!has_cuda()) {
    EXPECT_THROW(make_backend("cuda", {}), Error);
  }
}

TEST_F(CudaBackendTest, MemoryIsZeroAndTooMuchIsATypedError) {
  std::byte* const memory = cuda_->allocate(1000);
  std::vector<std::byte> bytes(1000, std::byte{1});
  cuda_->copy_to_host(bytes.data(), memory, bytes.size());
  EXPECT_TRUE(std::ranges::all_of(bytes, [](std::byte b) { return b == std::byte{0}; }));
  cuda_->free(memory);
  try {
    cuda_->allocate(size_t{1} << 50);
    FAIL() << "a petabyte was allocated";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kRuntime);
    EXPECT_TRUE(std::string(error.what()).starts_with("Not enough memory.")) << error.what();
    EXPECT_NE(std::string(error.what()).find("free"), std::string::npos) << error.what();
  }
  cuda_->free(cuda_->allocate(1 << 20));  // the backend lives on
}

TEST_F(CudaBackendTest, NormsEmbedGatherSoftcap) {
  for (const int64_t cols : {1, 8, 33, 576, 4096, 14337}) {
    for (const int64_t rows : {1, 3, 130}) {
      if (cols > 5000 && rows > 3) continue;
      const auto x = normal_values(rows * cols, random_), y = normal_values(rows * cols, random_);
      const auto w = normal_values(cols, random_);
      const std::vector<int32_t> picks = {static_cast<int32_t>(rows - 1), 0, static_cast<int32_t>(rows / 2)};
      compare(1e-6, [&](Backend& ops) {
        Placed in(ops, rows, cols, x), out(ops, rows, cols), sum(ops, rows, cols, y);
        Placed picked(ops, 3, cols);
        PlacedVector weight(ops, w);
        const Norm norm{weight.data(), 1e-5f};
        ops.rms_norm(in.view(), norm, out.view());
        ops.add_rms_norm(out.view(), norm, sum.view());
        ops.gather_rows(sum.view(), picks, picked.view());
        ops.rms_norm(in.view(), norm, in.view());
        ops.softcap(in.view(), 1.5f);
        std::vector<float> all = out.read();
        for (Placed* part : {&sum, &picked, &in}) std::ranges::copy(part->read(), std::back_inserter(all));
        return all;
      });
    }
  }
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    auto values = normal_values(300 * 72, random_);
    for (float& value : values) value = rounded(value, dtype);
    const RawTensor table = tensor_of(values, 300, 72, weight_type_of(dtype));
    const RawTensor* const part = &table;
    std::vector<int32_t> ids;
    for (int i = 0; i < 70; ++i) ids.push_back(static_cast<int32_t>(random_() % 300));
    compare(1e-7, [&](Backend& ops) {
      const auto weight = ops.pack({&part, 1}, {}, packing_of(dtype));
      Placed out(ops, 70, 72);
      ops.embed(ids, *weight, 1.25f, out.view());
      return out.read();
    });
  }
}

TEST_F(CudaBackendTest, PackJoinsPartsAndRefusesNan) {
  const auto a = normal_values(3 * 40, random_);
  auto b = normal_values(5 * 40, random_);
  const RawTensor first = tensor_of(a, 3, 40, WeightType::kF32), second = tensor_of(b, 5, 40, WeightType::kBF16);
  const RawTensor* const parts[] = {&first, &second};
  const std::vector<int32_t> ids = {7, 0, 2, 3};
  compare(1e-7, [&](Backend& ops) {
    const auto weight = ops.pack(parts, {}, Packing::kFloat32);
    Placed out(ops, 4, 40);
    ops.embed(ids, *weight, 1, out.view());
    return out.read();
  });
  b[90] = kNan;
  const RawTensor damaged = tensor_of(b, 5, 40, WeightType::kF32);
  const RawTensor* const bad[] = {&first, &damaged};
  EXPECT_THROW(cuda_->pack(bad, {}, Packing::kBFloat16), Error);
  EXPECT_THROW(cuda_->pack(bad, {}, Packing::kFloat16), Error);
  b[90] = 1e5f;
  const RawTensor large = tensor_of(b, 5, 40, WeightType::kF32);
  const RawTensor* const part = &large;
  EXPECT_NO_THROW(cuda_->pack({&part, 1}, {}, Packing::kBFloat16));
  try {
    cuda_->pack({&part, 1}, {}, Packing::kFloat16);
    ADD_FAILURE() << "1e5 is no fp16";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("overflow float16; use dtype='bfloat16'"), std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace tokenmill
