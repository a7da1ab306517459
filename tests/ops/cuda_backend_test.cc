// Every operation of the CUDA backend against the naive one: fresh random inputs, outputs poisoned beforehand. One op
// sequence serves both backends through Backend alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "models/naive_backend.h"
#include "ops/backend_registry.h"
#include "tokenmill/error.h"

namespace tokenmill {
namespace {

const float kNan = std::numeric_limits<float>::quiet_NaN();

uint64_t fresh_seed() {
  static std::random_device device;
  return uint64_t{device()} << 32 | device();
}

std::vector<float> normal_values(int64_t count, std::mt19937_64& random, double deviation = 1) {
  std::normal_distribution<double> normal(0, deviation);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(normal(random));
  return values;
}

// A matrix in a backend's memory with NaN in the gaps between its rows.
class Placed {
 public:
  Placed(Backend& backend, int64_t rows, int64_t cols, int64_t extra = 5)
      : backend_(backend), values_(static_cast<size_t>(rows * (cols + extra)), kNan) {
    matrix_ = {backend.allocate(values_.size() * 4), rows, cols, cols + extra, DType::kF32};
    send();
  }
  Placed(Backend& backend, int64_t rows, int64_t cols, const std::vector<float>& dense, int64_t extra = 5)
      : Placed(backend, rows, cols, extra) {
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(&dense[static_cast<size_t>(r * cols)], cols, &values_[static_cast<size_t>(r * matrix_.stride)]);
    }
    send();
  }
  ~Placed() { backend_.free(static_cast<std::byte*>(matrix_.data)); }
  Placed(const Placed&) = delete;
  Placed& operator=(const Placed&) = delete;

  Matrix view() const { return matrix_; }
  // The values without the gaps; fails if a gap was written.
  std::vector<float> read() {
    std::vector<float> all(values_.size());
    backend_.copy_to_host(all.data(), matrix_.data, all.size() * 4);
    std::vector<float> dense;
    for (int64_t r = 0; r < matrix_.rows; ++r) {
      for (int64_t c = 0; c < matrix_.stride; ++c) {
        const float value = all[static_cast<size_t>(r * matrix_.stride + c)];
        if (c < matrix_.cols) {
          dense.push_back(value);
        } else {
          EXPECT_TRUE(std::isnan(value)) << "a gap was written, row " << r;
        }
      }
    }
    return dense;
  }

 private:
  void send() { backend_.copy_from_host(matrix_.data, values_.data(), values_.size() * 4); }
  Backend& backend_;
  std::vector<float> values_;
  Matrix matrix_;
};

// Rows of 16 bytes' alignment in the type that product_input() names, poisoned.
class PlacedInput {
 public:
  PlacedInput(Backend& backend, int64_t rows, int64_t cols)
      : backend_(backend), bytes_(static_cast<size_t>(rows * (cols + 8)) * 4, std::byte{0xff}) {
    const DType dtype = backend.product_input(Packing::kBFloat16);
    matrix_ = {backend.allocate(bytes_.size()), rows, cols, cols + 8, dtype};
    backend.copy_from_host(matrix_.data, bytes_.data(), bytes_.size());
  }
  ~PlacedInput() { backend_.free(static_cast<std::byte*>(matrix_.data)); }
  PlacedInput(const PlacedInput&) = delete;
  PlacedInput& operator=(const PlacedInput&) = delete;

  Matrix view() const { return matrix_; }
  std::vector<float> read() {
    backend_.copy_to_host(bytes_.data(), matrix_.data, bytes_.size());
    std::vector<float> dense;
    for (int64_t r = 0; r < matrix_.rows; ++r) {
      for (int64_t c = 0; c < matrix_.stride; ++c) {
        const size_t at = static_cast<size_t>(r * matrix_.stride + c);
        const float value = matrix_.dtype == DType::kBF16 ? bf16_to_f32(reinterpret_cast<uint16_t*>(bytes_.data())[at])
                                                          : reinterpret_cast<float*>(bytes_.data())[at];
        if (c < matrix_.cols) {
          dense.push_back(value);
        } else {
          EXPECT_TRUE(std::isnan(value)) << "a gap was written, row " << r;
        }
      }
    }
    return dense;
  }

 private:
  Backend& backend_;
  std::vector<std::byte> bytes_;
  Matrix matrix_;
};

class PlacedVector {
 public:
  PlacedVector(Backend& backend, const std::vector<float>& values)
      : backend_(backend), memory_(backend.allocate(values.size() * 4)) {
    backend.copy_from_host(memory_, values.data(), values.size() * 4);
  }
  ~PlacedVector() { backend_.free(memory_); }
  PlacedVector(const PlacedVector&) = delete;
  PlacedVector& operator=(const PlacedVector&) = delete;
  const float* data() const { return reinterpret_cast<const float*>(memory_); }

 private:
  Backend& backend_;
  std::byte* memory_;
};

// ||got - want|| / ||want||; NaN anywhere gives NaN, which fails every comparison.
double relative_error(const std::vector<float>& got, const std::vector<float>& want) {
  EXPECT_EQ(got.size(), want.size());
  double error = 0, size = 0;
  for (size_t i = 0; i < std::min(got.size(), want.size()); ++i) {
    error += (double{got[i]} - want[i]) * (double{got[i]} - want[i]);
    size += double{want[i]} * want[i];
  }
  return std::sqrt(error / std::max(size, 1e-30));
}

float rounded(float value) { return bf16_to_f32(f32_to_bf16(value)); }

RawTensor tensor_of(const std::vector<float>& values, int64_t rows, int64_t cols, WeightType type) {
  RawTensor tensor;
  tensor.name = "random";
  tensor.type = type;
  tensor.shape = {rows, cols};
  const size_t size = type == WeightType::kF32 ? 4 : 2;
  auto bytes = std::make_shared<std::vector<std::byte>>(values.size() * size);
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t half = f32_to_bf16(values[i]);
    std::memcpy(bytes->data() + i * size, size == 4 ? static_cast<const void*>(&values[i]) : &half, size);
  }
  tensor.data = bytes->data();
  tensor.owned = bytes;
  return tensor;
}

class CudaBackendTest : public testing::Test {
 protected:
  void SetUp() override {
    if (num_cuda_devices() == 0) GTEST_SKIP() << "not run: no CUDA device";
    cuda_ = make_backend("cuda", {});
    RecordProperty("seed", std::to_string(seed_));
  }
  // The same work on both backends.
  template <class Work>
  void compare(double tolerance, Work&& work) {
    const std::vector<float> want = work(static_cast<Backend&>(naive_)), got = work(*cuda_);
    EXPECT_LE(relative_error(got, want), tolerance) << "seed " << seed_;
  }

  uint64_t seed_ = fresh_seed();
  std::mt19937_64 random_{seed_};
  NaiveBackend naive_;
  std::unique_ptr<Backend> cuda_;
};

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
  for (const WeightType type : {WeightType::kF32, WeightType::kBF16}) {
    auto values = normal_values(300 * 72, random_);
    for (float& value : values) value = rounded(value);
    const RawTensor table = tensor_of(values, 300, 72, type);
    const RawTensor* const part = &table;
    std::vector<int32_t> ids;
    for (int i = 0; i < 70; ++i) ids.push_back(static_cast<int32_t>(random_() % 300));
    compare(1e-7, [&](Backend& ops) {
      const auto weight = ops.pack({&part, 1}, {}, type == WeightType::kF32 ? Packing::kFloat32 : Packing::kBFloat16);
      Placed out(ops, 70, 72);
      ops.embed(ids, *weight, 1.25f, out.view());
      return out.read();
    });
  }
}

TEST_F(CudaBackendTest, LinearAndGatedLinear) {
  struct Shape {
    int64_t n, k;
  };
  for (const Packing packing : {Packing::kFloat32, Packing::kBFloat16}) {
    for (const Shape shape : {Shape{1, 2}, Shape{7, 33}, Shape{64, 64}, Shape{101, 576}, Shape{48, 4100}}) {
      for (const int64_t rows : {1, 2, 3, 4, 5, 8, 9, 33, 200}) {
        const auto [n, k] = shape;
        auto x = normal_values(rows * k, random_), w = normal_values(n * k, random_), u = normal_values(n * k, random_);
        const auto before = normal_values(rows * n, random_), bias = normal_values(n, random_);
        const auto norm_values = normal_values(k, random_);
        if (packing == Packing::kBFloat16) {
          for (std::vector<float>* values : {&x, &w, &u}) {
            for (float& value : *values) value = rounded(value);
          }
        }
        const WeightType type = packing == Packing::kFloat32 ? WeightType::kF32 : WeightType::kBF16;
        const RawTensor wt = tensor_of(w, n, k, type), ut = tensor_of(u, n, k, type);
        const RawTensor *wp = &wt, *up = &ut;
        const bool exact = packing == Packing::kFloat32;
        // Inputs that bf16 holds exactly; after a norm they are rounded, on the naive side not.
        for (const bool with_norm : {false, true}) {
          compare(exact || !with_norm ? 2e-5 : 1e-2, [&](Backend& ops) {
            const auto weight = ops.pack({&wp, 1}, bias, packing), gate = ops.pack({&wp, 1}, {}, packing);
            const auto other = ops.pack({&up, 1}, bias, packing);
            Placed in(ops, rows, k, x), out(ops, rows, n), sum(ops, rows, n, before), gated(ops, rows, n);
            PlacedVector norm_weight(ops, norm_values);
            const Norm norm{norm_weight.data(), 1e-6f};
            const Norm* const input_norm = with_norm ? &norm : nullptr;
            ops.linear({.x = in.view(), .input_norm = input_norm, .weight = weight.get(), .out = out.view()});
            ops.linear({.x = in.view(),
                        .input_norm = input_norm,
                        .weight = weight.get(),
                        .add_to_out = true,
                        .out = sum.view()});
            std::vector<float> all = out.read();
            std::ranges::copy(sum.read(), std::back_inserter(all));
            for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
              ops.gated_linear({.x = in.view(),
                                .input_norm = input_norm,
                                .gate = gate.get(),
                                .up = other.get(),
                                .activation = activation,
                                .out = gated.view()});
              std::ranges::copy(gated.read(), std::back_inserter(all));
            }
            return all;
          });
        }
      }
    }
  }
}

// Shapes and alignments of real models: what the streaming kernels take, and what they hand on to each other.
TEST_F(CudaBackendTest, AlignedProductsAndTheirBf16Activations) {
  struct Shape {
    int64_t n, k;
  };
  for (const Shape shape : {Shape{16, 64}, Shape{300, 576}, Shape{1032, 4096}, Shape{40, 7168}}) {
    for (const int64_t rows : {1, 2, 3, 5, 8, 9, 16, 17, 32, 40, 130}) {
      const auto [n, k] = shape;
      if (n > 1000 && rows != 1 && rows != 3 && rows != 8 && rows != 40) continue;  // the naive side is slow
      SCOPED_TRACE("n " + std::to_string(n) + " k " + std::to_string(k) + " rows " + std::to_string(rows));
      auto x = normal_values(rows * k, random_), w = normal_values(n * k, random_), u = normal_values(n * k, random_);
      auto d = normal_values(24 * n, random_);
      for (std::vector<float>* values : {&x, &w, &u, &d}) {
        for (float& value : *values) value = rounded(value);
      }
      const auto before = normal_values(rows * 24, random_), bias = normal_values(n, random_);
      const auto norm_values = normal_values(k, random_);
      const RawTensor wt = tensor_of(w, n, k, WeightType::kBF16), ut = tensor_of(u, n, k, WeightType::kBF16);
      const RawTensor dt = tensor_of(d, 24, n, WeightType::kBF16);
      const RawTensor *wp = &wt, *up = &ut, *dp = &dt;
      for (const bool with_norm : {false, true}) {
        // Normed inputs and the gate's outputs are rounded, on the naive side not.
        std::vector<float> exact[2];
        int which = 0;
        const auto work = [&](Backend& ops) {
          const auto weight = ops.pack({&wp, 1}, bias, Packing::kBFloat16);
          const auto other = ops.pack({&up, 1}, {}, Packing::kBFloat16);
          const auto down = ops.pack({&dp, 1}, {}, Packing::kBFloat16);
          Placed in(ops, rows, k, x, 8), out(ops, rows, n, 8), sum(ops, rows, 24, before, 8);
          PlacedInput gated(ops, rows, n);
          PlacedVector norm_weight(ops, norm_values);
          const Norm norm{norm_weight.data(), 1e-6f};
          const Norm* const input_norm = with_norm ? &norm : nullptr;
          ops.linear({.x = in.view(), .input_norm = input_norm, .weight = weight.get(), .out = out.view()});
          exact[which++] = out.read();
          ops.gated_linear(
              {.x = in.view(), .input_norm = input_norm, .gate = weight.get(), .up = other.get(), .out = gated.view()});
          ops.linear({.x = gated.view(), .weight = down.get(), .add_to_out = true, .out = sum.view()});
          std::vector<float> all = gated.read();
          for (float& value : all) value /= static_cast<float>(k);  // of the size of the others
          for (const float value : sum.read())
            all.push_back(value / static_cast<float>(k) / std::sqrt(static_cast<float>(n)));
          return all;
        };
        compare(1e-2, work);
        EXPECT_LE(relative_error(exact[1], exact[0]), with_norm ? 5e-3 : 2e-5) << "seed " << seed_;
      }
    }
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
}

struct AttentionCase {
  int32_t q_heads, kv_heads, head_dim, window;
  float softcap;
  DType dtype;
  bool norms;
  // As the models lay things out: rows aligned, rotation without norms over whole heads, left to attention() where it
  // can be, output in product_input()'s type.
  bool aligned = false;
};

// Prefill chunks, decodes and their mixture over a pool of NaN, with block copies, rope and norms on the way. A layer
// with a window is of the window group: what lies behind its windows is NaN again and the tables do not name it.
std::vector<float> attend_steps(Backend& ops, const AttentionCase& test, int32_t page_size, uint64_t seed) {
  std::mt19937_64 random(seed);
  const int32_t blocks = 4096 / page_size;
  const int64_t block_bytes = ops.kv_block_bytes(test.kv_heads, test.head_dim, page_size, test.dtype);
  const size_t bytes = static_cast<size_t>(block_bytes * blocks);
  const std::vector<std::byte> poison(bytes, std::byte{0xff});
  KvLayer kv{ops.allocate(bytes), block_bytes, blocks, page_size, test.kv_heads, test.head_dim, test.dtype};
  if (test.window > 0) kv.group = KvGroup::kWindow;
  ops.copy_from_host(kv.base, poison.data(), bytes);
  std::vector<int32_t> free_blocks(static_cast<size_t>(blocks));
  for (int32_t i = 0; i < blocks; ++i) free_blocks[static_cast<size_t>(i)] = i;
  std::mt19937_64 order(seed + 1);  // of its own: all page sizes see the same values
  std::shuffle(free_blocks.begin(), free_blocks.end(), order);
  std::vector<std::vector<int32_t>> tables(4);
  std::vector<int32_t> done(4, 0);
  const auto q_norm = normal_values(test.head_dim, random), k_norm = normal_values(test.head_dim, random);
  const PlacedVector q_weight(ops, q_norm), k_weight(ops, k_norm);
  const Norm q{q_weight.data(), 1e-6f}, k{k_weight.data(), 1e-6f};
  const int32_t cut = test.aligned ? 0 : static_cast<int32_t>(random() % 2);
  const int32_t half = std::max(1, test.head_dim / 2 - cut);
  std::vector<float> inv_freq, all;
  for (int32_t i = 0; i < half; ++i) inv_freq.push_back(std::pow(10000.0f, -static_cast<float>(i) / half));
  // (tokens of each of the four sequences) a step
  const int32_t steps[][4] = {{70, 0, 3, 600}, {1, 33, 1, 1}, {1, 1, 1, 1}, {0, 5, 0, 1}, {1, 1, 1, 1}};
  for (const auto& step : steps) {
    Batch batch;
    for (size_t s = 0; s < 4; ++s) {
      if (step[s] == 0) continue;
      BatchRow row{.sequence_id = s, .q_len = step[s], .kv_len = done[s] += step[s]};
      row.token_begin = static_cast<int32_t>(batch.tokens.size());
      row.block_begin = static_cast<int32_t>(batch.block_tables.size());
      row.num_blocks = (row.kv_len + page_size - 1) / page_size;
      while (static_cast<int32_t>(tables[s].size()) < row.num_blocks) {
        tables[s].push_back(free_blocks.back());
        free_blocks.pop_back();
      }
      if (test.window > 0) {
        batch.window_tables.insert(batch.window_tables.end(), tables[s].begin(), tables[s].end());
        batch.block_tables.resize(batch.window_tables.size(), 0);
      } else {
        batch.block_tables.insert(batch.block_tables.end(), tables[s].begin(), tables[s].end());
      }
      for (int32_t i = 0; i < row.q_len; ++i) {
        batch.tokens.push_back(static_cast<int32_t>(random() % 100));
        batch.positions.push_back(row.kv_len - row.q_len + i);
      }
      batch.rows.push_back(row);
    }
    // The last block of sequence 0 moves, as a copied prefix does.
    const int32_t held = done[0] - step[0] - (static_cast<int32_t>(tables[0].size()) - 1) * page_size;
    if (held > 0 && step[0] > 0) {
      const int32_t target = free_blocks.back();
      free_blocks.pop_back();
      const BlockCopy copy{tables[0].back(), target, held};
      ops.copy_blocks(kv, {&copy, 1});
      (test.window > 0 ? batch.window_tables : batch.block_tables)[tables[0].size() - 1] = target;
      tables[0].back() = target;
    }
    const int64_t tokens = static_cast<int64_t>(batch.tokens.size());
    const int64_t cols = int64_t{test.q_heads + 2 * test.kv_heads} * test.head_dim;
    auto values = normal_values(tokens * cols, random);
    const bool rotates = test.norms || test.aligned;
    if (test.dtype == DType::kBF16 && !rotates) {
      for (float& value : values) value = rounded(value);  // so that an unrotated KV row is exact
    }
    const int64_t extra = test.aligned ? 8 : 5;
    Placed qkv(ops, tokens, cols, values, extra), out(ops, tokens, int64_t{test.q_heads} * test.head_dim);
    PlacedInput rounded_out(ops, tokens, int64_t{test.q_heads} * test.head_dim);
    Placed cos(ops, tokens, half, extra), sin(ops, tokens, half, extra);
    const RopeTable rope{cos.view(), sin.view()};
    ops.plan(batch, page_size);
    ops.rope_table(batch.positions, inv_freq, 1.1f, rope);
    ops.rope_kv_write({.qkv = qkv.view(),
                       .q_heads = test.q_heads,
                       .rope = rotates ? &rope : nullptr,
                       .q_norm = test.norms ? &q : nullptr,
                       .k_norm = test.norms ? &k : nullptr,
                       .kv = kv,
                       .attention_follows = test.aligned});
    ops.attention({.q = qkv.view(),
                   .q_heads = test.q_heads,
                   .kv = kv,
                   .scale = 1 / std::sqrt(static_cast<float>(test.head_dim)),
                   .softcap = test.softcap,
                   .window = test.window,
                   .out = test.aligned ? rounded_out.view() : out.view()});
    std::ranges::copy(test.aligned ? rounded_out.read() : out.read(), std::back_inserter(all));
    for (size_t s = 0; s < 4 && test.window > 0; ++s) {
      for (int32_t i = 0; (i + 1) * page_size <= done[s] - test.window + 1; ++i) {
        int32_t& block = tables[s][static_cast<size_t>(i)];
        if (block < 0) continue;
        ops.copy_from_host(kv.base + block * block_bytes, poison.data(), static_cast<size_t>(block_bytes));
        free_blocks.insert(free_blocks.begin(), block);
        block = -1;
      }
    }
    if (test.aligned) continue;
    std::ranges::copy(cos.read(), std::back_inserter(all));
    std::ranges::copy(sin.read(), std::back_inserter(all));
  }
  ops.free(kv.base);
  return all;
}

TEST_F(CudaBackendTest, RopeKvWriteAndPagedAttention) {
  const AttentionCase cases[] = {
      {4, 4, 64, 0, 0, DType::kF32, true},     {8, 2, 128, 0, 0, DType::kF32, true},
      {6, 2, 256, 100, 30, DType::kF32, true}, {71, 1, 64, 0, 0, DType::kF32, true},
      {3, 1, 2, 7, 0, DType::kF32, true},      {5, 5, 18, 0, 5, DType::kF32, true},
      {14, 2, 96, 33, 0, DType::kF32, true},   {8, 2, 128, 0, 0, DType::kBF16, false},
      {4, 1, 64, 50, 10, DType::kBF16, false}, {6, 6, 80, 0, 0, DType::kBF16, false},
      {2, 1, 256, 0, 0, DType::kBF16, false},  {8, 2, 128, 0, 0, DType::kBF16, true},
  };
  for (const AttentionCase& test : cases) {
    for (const int32_t page_size : {1, 16, 64}) {
      const uint64_t seed = random_();
      SCOPED_TRACE("heads " + std::to_string(test.q_heads) + "/" + std::to_string(test.kv_heads) + " dim " +
                   std::to_string(test.head_dim) + " page " + std::to_string(page_size));
      // With rope before a bf16 pool the keys are rounded, on the naive side not.
      const bool rounds = test.dtype == DType::kBF16 && test.norms;
      compare(rounds ? 1e-2 : 1e-5, [&](Backend& ops) { return attend_steps(ops, test, page_size, seed); });
    }
  }
}

// The kernels that models' own shapes and alignments get. Queries, keys and softmax weights are rounded there, on the
// naive side not.
TEST_F(CudaBackendTest, AlignedAttention) {
  const AttentionCase cases[] = {
      {8, 2, 128, 0, 0, DType::kBF16, false, true},    {4, 2, 64, 0, 0, DType::kBF16, false, true},
      {4, 1, 128, 100, 30, DType::kBF16, false, true}, {6, 1, 64, 90, 0, DType::kBF16, true, true},
      {3, 1, 128, 0, 0, DType::kBF16, true, true},     {2, 1, 256, 0, 0, DType::kBF16, false, true},
  };
  for (const AttentionCase& test : cases) {
    const uint64_t seed = random_();
    const std::vector<float> want = attend_steps(naive_, test, 16, seed);
    for (const int32_t page_size : {1, 8, 16, 64}) {
      SCOPED_TRACE("heads " + std::to_string(test.q_heads) + "/" + std::to_string(test.kv_heads) + " dim " +
                   std::to_string(test.head_dim) + " page " + std::to_string(page_size));
      EXPECT_LE(relative_error(attend_steps(*cuda_, test, page_size, seed), want), 1e-2) << "seed " << seed_;
    }
  }
}

// A long prefix, so that keys are split over many blocks and each of them goes round its ring of tiles.
std::vector<float> attend_late(Backend& ops, int32_t head_dim, int32_t window, int32_t tokens, uint64_t seed) {
  constexpr int32_t kHeads = 4, kPage = 16, kPrefix = 14003;
  std::mt19937_64 random(seed);
  const int32_t blocks = (kPrefix + tokens + kPage - 1) / kPage;
  const int64_t block_bytes = ops.kv_block_bytes(1, head_dim, kPage, DType::kBF16);
  const std::vector<std::byte> poison(static_cast<size_t>(block_bytes * blocks), std::byte{0xff});
  KvLayer kv{ops.allocate(poison.size()), block_bytes, blocks, kPage, 1, head_dim, DType::kBF16};
  ops.copy_from_host(kv.base, poison.data(), poison.size());
  std::vector<float> all;
  for (const bool last : {false, true}) {
    const int32_t count = last ? tokens : kPrefix;
    Batch batch;
    BatchRow& row = batch.rows.emplace_back();
    row.q_len = count;
    row.kv_len = last ? kPrefix + tokens : kPrefix;
    row.num_blocks = (row.kv_len + kPage - 1) / kPage;
    for (int32_t i = 0; i < row.num_blocks; ++i) batch.block_tables.push_back(blocks - 1 - i);
    for (int32_t i = 0; i < count; ++i) {
      batch.tokens.push_back(0);
      batch.positions.push_back(last ? kPrefix + i : i);
    }
    auto values = normal_values(int64_t{count} * (kHeads + 2) * head_dim, random);
    for (float& value : values) value = rounded(value);
    Placed qkv(ops, count, int64_t{kHeads + 2} * head_dim, values, 8);
    PlacedInput out(ops, count, int64_t{kHeads} * head_dim);
    ops.plan(batch, kPage);
    ops.rope_kv_write({.qkv = qkv.view(), .q_heads = kHeads, .kv = kv});
    if (!last) continue;
    ops.attention({.q = qkv.view(), .q_heads = kHeads, .kv = kv, .scale = 0.3f, .window = window, .out = out.view()});
    all = out.read();
  }
  ops.free(kv.base);
  return all;
}

TEST_F(CudaBackendTest, AttentionOverALongPrefix) {
  for (const int32_t head_dim : {64, 128}) {
    for (const int32_t window : {0, 9000}) {
      for (const int32_t tokens : {1, 3, 40}) {
        if (window > 0 && tokens == 3) continue;
        SCOPED_TRACE("dim " + std::to_string(head_dim) + " window " + std::to_string(window) + " tokens " +
                     std::to_string(tokens));
        const uint64_t seed = random_();
        compare(5e-3, [&](Backend& ops) { return attend_late(ops, head_dim, window, tokens, seed); });
      }
    }
  }
}

std::vector<SampledToken> sample_rows(Backend& ops, const std::vector<float>& logits, int64_t vocab,
                                      std::span<const SamplingRow> rows) {
  Placed placed(ops, static_cast<int64_t>(rows.size()), vocab, logits);
  std::vector<SampledToken> out(rows.size());
  ops.sample(placed.view(), rows, out);
  return out;
}

// Against the CPU backend, whose own test compares it with brute force. Both see the same random numbers; where a draw
// falls within rounding of a border the tokens may differ, which must stay rare.
TEST_F(CudaBackendTest, SamplesLikeTheCpu) {
  const auto cpu = make_backend("cpu", {.num_threads = 2, .isa = ""});
  const auto chance = [&](uint64_t one_in) { return random_() % one_in == 0; };
  const auto uniform = [&](double low, double high) {
    return static_cast<float>(std::uniform_real_distribution<double>(low, high)(random_));
  };
  int rows_seen = 0, differing = 0;
  std::set<int32_t> tokens;
  for (int trial = 0; trial < 120; ++trial) {
    const int64_t vocab = chance(6) ? 50257 : chance(3) ? 1500 : static_cast<int64_t>(1 + random_() % 300);
    constexpr size_t kRows = 16;
    auto logits = normal_values(static_cast<int64_t>(kRows) * vocab, random_, uniform(0.1, 6));
    const bool ties = chance(3);
    for (float& value : logits) value = ties ? std::round(value) : value;
    const auto some_ids = [&](uint64_t one_in) {
      std::vector<int32_t> ids;
      for (int32_t id = 0; id < vocab; ++id) {
        if (chance(one_in)) ids.push_back(id);
      }
      return ids;
    };
    std::vector<SamplingRow> rows(kRows);
    std::vector<TokenCounts> counts(kRows);
    std::vector<std::vector<std::pair<int32_t, float>>> bias(kRows);
    std::vector<std::vector<int32_t>> banned(kRows), more(kRows), allowed(kRows), asked(kRows);
    for (size_t i = 0; i < kRows; ++i) {
      SamplingRow& row = rows[i];
      row.temperature = chance(4) ? 0.0f : uniform(0.1, 2);
      row.seed = random_();
      row.position = static_cast<uint32_t>(i);
      if (chance(2)) row.top_k = static_cast<int32_t>(1 + random_() % 60);
      if (chance(2)) row.top_p = uniform(0.01, 1);
      if (chance(3)) row.min_p = uniform(0, 0.5);
      if (chance(2)) {
        counts[i].prompt_ids = some_ids(4);
        for (const int32_t id : some_ids(4))
          counts[i].output_ids.emplace_back(id, static_cast<int32_t>(1 + random_() % 3));
        row.counts = &counts[i];
        row.frequency_penalty = uniform(-1, 1);
        row.presence_penalty = uniform(-1, 1);
        row.repetition_penalty = uniform(0.5, 1.9);
      }
      for (const int32_t id : some_ids(10)) bias[i].emplace_back(id, uniform(-5, 5));
      if (chance(3)) row.logit_bias = &bias[i];
      banned[i] = some_ids(5);
      more[i] = some_ids(5);
      allowed[i] = some_ids(2);
      asked[i] = some_ids(50);
      if (chance(3)) row.banned_ids = &banned[i];
      if (chance(3)) row.banned_ids_more = &more[i];
      if (chance(4)) row.allowed_ids = &allowed[i];
      row.want_logprob = chance(2);
      if (chance(3)) row.top_logprobs = static_cast<int32_t>(random_() % 8);
      if (chance(3)) row.logprob_ids = &asked[i];
      if (chance(20)) logits[i * static_cast<size_t>(vocab)] = chance(2) ? kNan : -kNan;
    }
    const auto want = sample_rows(*cpu, logits, vocab, rows), got = sample_rows(*cuda_, logits, vocab, rows);
    for (size_t i = 0; i < kRows; ++i) {
      ++rows_seen;
      SCOPED_TRACE("trial " + std::to_string(trial) + " row " + std::to_string(i) + " seed " + std::to_string(seed_));
      ASSERT_EQ(got[i].invalid, want[i].invalid);
      ASSERT_EQ(got[i].top_logprobs.size(), want[i].top_logprobs.size());
      ASSERT_EQ(got[i].ids_logprobs.size(), want[i].ids_logprobs.size());
      for (size_t j = 0; j < want[i].top_logprobs.size(); ++j) {
        EXPECT_EQ(got[i].top_logprobs[j].first, want[i].top_logprobs[j].first);
        EXPECT_NEAR(got[i].top_logprobs[j].second, want[i].top_logprobs[j].second, 1e-4);
      }
      for (size_t j = 0; j < want[i].ids_logprobs.size(); ++j) {
        EXPECT_EQ(got[i].ids_logprobs[j].first, want[i].ids_logprobs[j].first);
        EXPECT_NEAR(got[i].ids_logprobs[j].second, want[i].ids_logprobs[j].second, 1e-4);
      }
      if (got[i].token != want[i].token) {
        ++differing;
        EXPECT_GT(rows[i].temperature, 0) << "greedy rows are exact";
        continue;
      }
      tokens.insert(got[i].token);
      EXPECT_NEAR(got[i].logprob, want[i].logprob, 1e-4);
    }
  }
  EXPECT_LE(differing, rows_seen / 500) << "of " << rows_seen;
  EXPECT_GT(tokens.size(), 50u);
}

TEST_F(CudaBackendTest, SamplingIsTheSameAloneAndTogether) {
  const int64_t vocab = 32003;
  const auto logits = normal_values(8 * vocab, random_, 3);
  std::vector<SamplingRow> rows(8);
  for (size_t i = 0; i < 8; ++i)
    rows[i] = {.temperature = 1.2f, .top_p = 0.99f, .seed = random_(), .want_logprob = true};
  const auto together = sample_rows(*cuda_, logits, vocab, rows);
  for (size_t i = 0; i < 8; ++i) {
    const std::vector<float> own(logits.begin() + static_cast<int64_t>(i) * vocab,
                                 logits.begin() + static_cast<int64_t>(i + 1) * vocab);
    const auto alone = sample_rows(*cuda_, own, vocab, std::span(rows).subspan(i, 1));
    EXPECT_EQ(alone[0].token, together[i].token);
    EXPECT_EQ(alone[0].logprob, together[i].logprob);
  }
  const std::vector<int32_t> beyond = {static_cast<int32_t>(vocab)};
  SamplingRow outside;
  outside.banned_ids = &beyond;
  const std::vector<float> own(logits.begin(), logits.begin() + vocab);
  EXPECT_ANY_THROW(sample_rows(*cuda_, own, vocab, {&outside, 1}));
}

}  // namespace
}  // namespace tokenmill
