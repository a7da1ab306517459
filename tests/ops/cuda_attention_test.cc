// Rotation, KV and attention of the CUDA backend against the naive one.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "ops/cuda/cuda_options.h"
#include "ops/cuda_attention_steps.h"
#include "ops/cuda_testing.h"

namespace tokenmill {
namespace {

// As on a card before sm_90, with the least shared memory among them (sm_86 and sm_89).
std::unique_ptr<Backend> without_hopper_attention() {
  CudaOptions options;
  options.hopper_attention = false;
  options.shared_bytes_max = 99 << 10;
  return make_cuda_backend(options);
}

TEST_F(CudaBackendTest, RopeKvWriteAndPagedAttention) {
  const AttentionCase cases[] = {
      {4, 4, 64, 0, 0, DType::kF32, true},     {8, 2, 128, 0, 0, DType::kF32, true},
      {6, 2, 256, 100, 30, DType::kF32, true}, {71, 1, 64, 0, 0, DType::kF32, true},
      {3, 1, 2, 7, 0, DType::kF32, true},      {5, 5, 18, 0, 5, DType::kF32, true},
      {14, 2, 96, 33, 0, DType::kF32, true},   {8, 2, 128, 0, 0, DType::kBF16, false},
      {4, 1, 64, 50, 10, DType::kBF16, false}, {6, 6, 80, 0, 0, DType::kBF16, false},
      {2, 1, 256, 0, 0, DType::kBF16, false},  {8, 2, 128, 0, 0, DType::kBF16, true},
      {8, 2, 128, 0, 0, DType::kF16, true},    {6, 6, 80, 50, 10, DType::kF16, false},
  };
  for (const AttentionCase& test : cases) {
    for (const int32_t page_size : {1, 16, 64}) {
      const uint64_t seed = random_();
      SCOPED_TRACE("heads " + std::to_string(test.q_heads) + "/" + std::to_string(test.kv_heads) + " dim " +
                   std::to_string(test.head_dim) + " page " + std::to_string(page_size));
      // With rope before a 16-bit pool the keys are rounded, on the naive side not.
      const bool rounds = test.dtype != DType::kF32 && test.norms;
      compare(rounds ? tolerance_in(test.dtype, 1e-2) : 1e-5,
              [&](Backend& ops) { return attend_steps(ops, test, page_size, seed); });
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
      {8, 2, 128, 0, 0, DType::kF16, false, true},     {4, 2, 64, 0, 0, DType::kF16, false, true},
      {4, 1, 128, 100, 30, DType::kF16, false, true},  {6, 1, 64, 90, 0, DType::kF16, true, true},
      {2, 1, 256, 0, 0, DType::kF16, false, true},     {12, 1, 128, 0, 0, DType::kBF16, false, true},
  };
  const std::unique_ptr<Backend> others = without_hopper_attention();
  for (const AttentionCase& test : cases) {
    const uint64_t seed = random_();
    const std::vector<float> want = attend_steps(naive_, test, 16, seed);
    for (const int32_t page_size : {1, 8, 16, 32, 64}) {
      for (Backend* const ops : {cuda_.get(), others.get()}) {
        SCOPED_TRACE("heads " + std::to_string(test.q_heads) + "/" + std::to_string(test.kv_heads) + " dim " +
                     std::to_string(test.head_dim) + " page " + std::to_string(page_size) +
                     (ops == others.get() ? " without hopper_attention.h" : ""));
        EXPECT_LE(relative_error(attend_steps(*ops, test, page_size, seed), want), tolerance_in(test.dtype, 1e-2))
            << "seed " << seed_;
      }
    }
  }
}

// More units of rows than a card has multiprocessors, so that blocks take several, of unequal lengths, one after the
// other; sequences of few new tokens and heads with norms among them.
std::vector<float> attend_crowd(Backend& ops, int32_t head_dim, int32_t window, DType dtype, bool norms,
                                uint64_t seed) {
  constexpr int32_t kHeads = 16, kKvHeads = 8, kPage = 16, kSequences = 28, kLongest = 160;
  std::mt19937_64 random(seed);
  const int32_t blocks_each = (kLongest + kPage - 1) / kPage, blocks = blocks_each * kSequences;
  const int64_t block_bytes = ops.kv_block_bytes(kKvHeads, head_dim, kPage, dtype);
  const std::vector<std::byte> poison(static_cast<size_t>(block_bytes * blocks), std::byte{0xff});
  KvLayer kv{ops.allocate(poison.size()), block_bytes, blocks, kPage, kKvHeads, head_dim, dtype};
  ops.copy_from_host(kv.base, poison.data(), poison.size());
  const PlacedVector q_weight(ops, normal_values(head_dim, random)), k_weight(ops, normal_values(head_dim, random));
  const Norm q_norm{q_weight.data(), 1e-6f}, k_norm{k_weight.data(), 1e-6f};
  std::vector<float> inv_freq, all;
  for (int32_t i = 0; i < head_dim / 2; ++i) inv_freq.push_back(1.0f / static_cast<float>(1 + i));
  std::vector<int32_t> done(kSequences, 0);
  for (const int32_t longest : {100, kLongest - 100}) {
    Batch batch;
    for (int32_t s = 0; s < kSequences; ++s) {
      const int32_t count = s % 5 == 0 ? 1 : 1 + static_cast<int32_t>(random() % static_cast<uint64_t>(longest));
      BatchRow row{.sequence_id = static_cast<uint64_t>(s), .q_len = count};
      row.kv_len = done[static_cast<size_t>(s)] += count;
      row.token_begin = static_cast<int32_t>(batch.tokens.size());
      row.block_begin = static_cast<int32_t>(batch.block_tables.size());
      row.num_blocks = (row.kv_len + kPage - 1) / kPage;
      for (int32_t b = 0; b < row.num_blocks; ++b) batch.block_tables.push_back(b * kSequences + s);
      for (int32_t i = 0; i < count; ++i) {
        batch.tokens.push_back(0);
        batch.positions.push_back(row.kv_len - count + i);
      }
      batch.rows.push_back(row);
    }
    const int64_t tokens = static_cast<int64_t>(batch.tokens.size()), cols = int64_t{kHeads + 2 * kKvHeads} * head_dim;
    std::vector<float> values(static_cast<size_t>(tokens * cols));
    for (float& value : values) value = static_cast<float>(random() % 4096) / 1024 - 2;
    Placed qkv(ops, tokens, cols, values, 8);
    Placed cos(ops, tokens, head_dim / 2, 8), sin(ops, tokens, head_dim / 2, 8);
    PlacedInput out(ops, tokens, int64_t{kHeads} * head_dim, packing_of(dtype));
    const RopeTable rope{cos.view(), sin.view()};
    ops.plan(batch, kPage);
    ops.rope_table(batch.positions, inv_freq, 1, rope);
    ops.rope_kv_write({.qkv = qkv.view(),
                       .q_heads = kHeads,
                       .rope = &rope,
                       .q_norm = norms ? &q_norm : nullptr,
                       .k_norm = norms ? &k_norm : nullptr,
                       .kv = kv,
                       .attention_follows = true});
    ops.attention({.q = qkv.view(), .q_heads = kHeads, .kv = kv, .scale = 0.1f, .window = window, .out = out.view()});
    std::ranges::copy(out.read(), std::back_inserter(all));
  }
  ops.free(kv.base);
  return all;
}

TEST_F(CudaBackendTest, AttentionOfACrowd) {
  const std::unique_ptr<Backend> others = without_hopper_attention();
  for (const bool deterministic : {false, true}) {
    cuda_ = make_backend("cuda", {}, deterministic);
    for (const int32_t head_dim : {64, 128}) {
      for (const int32_t window : {0, 70}) {
        for (const DType dtype : {DType::kBF16, DType::kF16}) {
          if (deterministic && dtype == DType::kF16) continue;
          SCOPED_TRACE("dim " + std::to_string(head_dim) + " window " + std::to_string(window) +
                       (dtype == DType::kF16 ? " fp16" : " bf16") + (deterministic ? " deterministic" : ""));
          const uint64_t seed = random_();
          const auto attend = [&](Backend& ops) {
            return attend_crowd(ops, head_dim, window, dtype, window == 0, seed);
          };
          const std::vector<float> want = attend(naive_);
          EXPECT_LE(relative_error(attend(*cuda_), want), tolerance_in(dtype, 1e-2)) << "seed " << seed_;
          if (deterministic) continue;
          EXPECT_LE(relative_error(attend(*others), want), tolerance_in(dtype, 1e-2))
              << "without hopper_attention.h, seed " << seed_;
        }
      }
    }
  }
}

// A long prefix, so that keys are split over many blocks and each of them goes round its ring of tiles.
std::vector<float> attend_late(Backend& ops, int32_t head_dim, int32_t window, int32_t tokens, DType dtype,
                               uint64_t seed) {
  constexpr int32_t kHeads = 4, kPage = 16, kPrefix = 14003;
  std::mt19937_64 random(seed);
  const int32_t blocks = (kPrefix + tokens + kPage - 1) / kPage;
  const int64_t block_bytes = ops.kv_block_bytes(1, head_dim, kPage, dtype);
  const std::vector<std::byte> poison(static_cast<size_t>(block_bytes * blocks), std::byte{0xff});
  KvLayer kv{ops.allocate(poison.size()), block_bytes, blocks, kPage, 1, head_dim, dtype};
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
    for (float& value : values) value = rounded(value, dtype);
    Placed qkv(ops, count, int64_t{kHeads + 2} * head_dim, values, 8);
    PlacedInput out(ops, count, int64_t{kHeads} * head_dim, packing_of(dtype));
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
  const std::unique_ptr<Backend> others = without_hopper_attention();
  for (const int32_t head_dim : {64, 128}) {
    for (const int32_t window : {0, 9000}) {
      for (const int32_t tokens : {1, 3, 40}) {
        if (window > 0 && tokens == 3) continue;
        SCOPED_TRACE("dim " + std::to_string(head_dim) + " window " + std::to_string(window) + " tokens " +
                     std::to_string(tokens));
        const uint64_t seed = random_();
        const DType dtype = window == 0 && tokens != 40 ? DType::kBF16 : DType::kF16;
        const std::vector<float> want = attend_late(naive_, head_dim, window, tokens, dtype, seed);
        for (Backend* const ops : {cuda_.get(), others.get()}) {
          EXPECT_LE(relative_error(attend_late(*ops, head_dim, window, tokens, dtype, seed), want),
                    tolerance_in(dtype, 5e-3))
              << (ops == others.get() ? "without hopper_attention.h, seed " : "seed ") << seed_;
        }
      }
    }
  }
}

}  // namespace
}  // namespace tokenmill
