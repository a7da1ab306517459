// Deterministic inference on CUDA: a row's bits are the same whatever is computed beside it.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "ops/cuda_testing.h"

namespace tokenmill {
namespace {

class CudaInvariantTest : public CudaBackendTest {
 protected:
  void SetUp() override {
    CudaBackendTest::SetUp();
    if (!IsSkipped()) cuda_ = make_backend("cuda", {}, true);
  }
};

TEST_F(CudaInvariantTest, ProductsOfARow) {
  struct Shape {
    int64_t n, k;
  };
  constexpr int64_t kRows = 1000;
  for (const Packing packing : {Packing::kFloat32, Packing::kBFloat16, Packing::kFloat16}) {
    for (const Shape shape : {Shape{8, 64}, Shape{304, 576}, Shape{101, 576}, Shape{264, 2048}, Shape{72, 7232},
                              Shape{6088, 192}, Shape{6088, 576}}) {
      const auto [n, k] = shape;
      SCOPED_TRACE("n " + std::to_string(n) + " k " + std::to_string(k) + " seed " + std::to_string(seed_));
      const auto x = normal_values(kRows * k, random_), norm_values = normal_values(k, random_);
      const auto w = normal_values(n * k, random_), u = normal_values(n * k, random_), bias = normal_values(n, random_);
      const RawTensor wt = tensor_of(w, n, k, WeightType::kF32), ut = tensor_of(u, n, k, WeightType::kF32);
      const RawTensor *wp = &wt, *up = &ut;
      const auto weight = cuda_->pack({&wp, 1}, bias, packing), other = cuda_->pack({&up, 1}, {}, packing);
      PlacedVector norm_weight(*cuda_, norm_values);
      const Norm norm{norm_weight.data(), 1e-6f};
      Placed in(*cuda_, kRows, k, x, 8);
      // Products of rows [first, first + count): plain, added to x's first columns, gated.
      const auto products = [&](int64_t first, int64_t count) {
        Placed out(*cuda_, count, n),
            sum(*cuda_, count, n, std::vector<float>(static_cast<size_t>(count * n), 0.3f), 8);
        PlacedInput gated(*cuda_, count, n, packing);
        const Matrix rows = in.view().slice_rows(first, count);
        cuda_->linear({.x = rows, .weight = weight.get(), .out = out.view()});
        cuda_->linear({.x = rows, .input_norm = &norm, .weight = other.get(), .add_to_out = true, .out = sum.view()});
        Matrix gated_out = gated.view();
        if (packing == Packing::kFloat32) gated_out = out.view();
        std::vector<std::vector<float>> all = {out.read(), sum.read()};
        cuda_->gated_linear(
            {.x = rows, .input_norm = &norm, .gate = weight.get(), .up = other.get(), .out = gated_out});
        all.push_back(packing == Packing::kFloat32 ? out.read() : gated.read());
        return all;
      };
      const auto whole = products(0, kRows);
      for (const auto& part : whole) {
        for (const float value : part) ASSERT_TRUE(std::isfinite(value));
      }
      for (const int64_t count : {1, 2, 7, 16, 17, 32, 33, 64, 65, 127, 128, 200, 257, 512, 777}) {
        const int64_t first = static_cast<int64_t>(random_() % static_cast<uint64_t>(kRows - count + 1));
        const auto some = products(first, count);
        for (size_t part = 0; part < whole.size(); ++part) {
          const auto begin = whole[part].begin() + first * n;
          EXPECT_EQ(some[part], std::vector<float>(begin, begin + count * n)) << "part " << part << " rows " << count;
        }
      }
    }
  }
}

struct InvariantCase {
  int32_t q_heads, kv_heads, head_dim, window;
  float softcap;
  DType dtype;
};

// Outputs of a sequence's tokens, whose step sizes are `sizes`; other sequences ride along where `crowd`.
std::vector<float> attend_in_steps(Backend& ops, const InvariantCase& test, const std::vector<float>& values,
                                   const std::vector<int32_t>& sizes, int32_t page, bool crowd, uint64_t seed) {
  std::mt19937_64 random(seed);
  const int64_t cols = int64_t{test.q_heads + 2 * test.kv_heads} * test.head_dim;
  const int64_t out_cols = int64_t{test.q_heads} * test.head_dim;
  const int32_t length = static_cast<int32_t>(static_cast<int64_t>(values.size()) / cols);
  const int32_t blocks = (length + page - 1) / page, sequences = crowd ? 4 : 1;
  const int64_t block_bytes = ops.kv_block_bytes(test.kv_heads, test.head_dim, page, test.dtype);
  const std::vector<std::byte> poison(static_cast<size_t>(block_bytes * blocks * sequences), std::byte{0xff});
  KvLayer kv{
      ops.allocate(poison.size()), block_bytes, blocks * sequences, page, test.kv_heads, test.head_dim, test.dtype};
  ops.copy_from_host(kv.base, poison.data(), poison.size());
  std::vector<float> all;
  int32_t done = 0;
  for (const int32_t size : sizes) {
    Batch batch;
    std::vector<float> rows;
    const int32_t own = crowd ? 1 : 0;  // its place among the rows
    for (int32_t s = 0; s < sequences; ++s) {
      const int32_t count = s == own ? size : size + 3 * s <= length - done ? size : 1;
      BatchRow row{.sequence_id = static_cast<uint64_t>(s), .q_len = count, .kv_len = done + count};
      row.token_begin = static_cast<int32_t>(batch.tokens.size());
      row.block_begin = static_cast<int32_t>(batch.block_tables.size());
      row.num_blocks = (row.kv_len + page - 1) / page;
      for (int32_t b = 0; b < row.num_blocks; ++b) batch.block_tables.push_back(s * blocks + blocks - 1 - b);
      for (int32_t i = 0; i < count; ++i) {
        batch.tokens.push_back(0);
        batch.positions.push_back(done + i);
      }
      batch.rows.push_back(row);
      if (s == own) {
        rows.insert(rows.end(), values.begin() + done * cols, values.begin() + (done + size) * cols);
      } else {
        const auto others = normal_values(count * cols, random);
        rows.insert(rows.end(), others.begin(), others.end());
      }
    }
    const int64_t tokens = static_cast<int64_t>(batch.tokens.size());
    Placed qkv(ops, tokens, cols, rows, 8), out(ops, tokens, out_cols, 8);
    ops.plan(batch, page);
    ops.rope_kv_write({.qkv = qkv.view(), .q_heads = test.q_heads, .kv = kv});
    ops.attention({.q = qkv.view(),
                   .q_heads = test.q_heads,
                   .kv = kv,
                   .scale = 0.2f,
                   .softcap = test.softcap,
                   .window = test.window,
                   .out = out.view()});
    const std::vector<float> got = out.read();
    const auto begin = got.begin() + batch.rows[static_cast<size_t>(own)].token_begin * out_cols;
    all.insert(all.end(), begin, begin + size * out_cols);
    done += size;
  }
  ops.free(kv.base);
  return all;
}

TEST_F(CudaInvariantTest, AttentionOfARow) {
  const InvariantCase cases[] = {
      {8, 2, 128, 0, 0, DType::kBF16}, {4, 1, 64, 90, 0, DType::kBF16}, {3, 1, 128, 0, 20, DType::kBF16},
      {4, 2, 80, 50, 0, DType::kBF16}, {4, 2, 64, 0, 0, DType::kF32},   {8, 2, 128, 0, 0, DType::kF16},
      {4, 1, 64, 90, 0, DType::kF16},
  };
  for (const InvariantCase& test : cases) {
    SCOPED_TRACE("heads " + std::to_string(test.q_heads) + "/" + std::to_string(test.kv_heads) + " dim " +
                 std::to_string(test.head_dim) + " seed " + std::to_string(seed_));
    constexpr int32_t kLength = 290;
    const int64_t cols = int64_t{test.q_heads + 2 * test.kv_heads} * test.head_dim;
    const auto values = normal_values(kLength * cols, random_);
    const std::vector<float> whole = attend_in_steps(*cuda_, test, values, {kLength}, 16, false, seed_);
    for (const float value : whole) ASSERT_TRUE(std::isfinite(value));
    const std::vector<std::vector<int32_t>> ways = {
        {100, 90, 100}, {129, 1, 1, 1, 158}, {250, 7, 33}, {1, 2, 3, 120, 164}};
    for (const std::vector<int32_t>& way : ways) {
      for (const int32_t page : {16, 32}) {
        EXPECT_EQ(attend_in_steps(*cuda_, test, values, way, page, page == 32, seed_), whole);
      }
    }
    std::vector<int32_t> decodes = {260};
    decodes.resize(31, 1);
    EXPECT_EQ(attend_in_steps(*cuda_, test, values, decodes, 16, true, seed_), whole);
  }
}

}  // namespace
}  // namespace tokenmill
