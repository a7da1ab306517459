// Sequences that grow step by step through rope_kv_write() and attention() of a backend.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <span>
#include <vector>

#include "ops/cuda_testing.h"

namespace tokenmill {

struct AttentionCase {
  int32_t q_heads, kv_heads, head_dim, window;
  float softcap;
  DType dtype;
  bool norms;
  // As the models lay things out: rows aligned, rotation without norms over whole heads, left to attention() where it
  // can be, output in product_input()'s type.
  bool aligned = false;
  bool brief = false;  // fewer tokens
};

// Prefill chunks, decodes and their mixture over a pool of NaN, with block copies, rope and norms on the way. A layer
// with a window is of the window group: what lies behind its windows is NaN again and the tables do not name it.
inline std::vector<float> attend_steps(Backend& ops, const AttentionCase& test, int32_t page_size, uint64_t seed) {
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
  const int32_t brief_steps[][4] = {{0, 0, 3, 300}, {1, 33, 0, 1}, {1, 1, 1, 1}};
  for (const auto& step : test.brief ? std::span<const int32_t[4]>(brief_steps) : std::span<const int32_t[4]>(steps)) {
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
    if (!rotates) {
      for (float& value : values) value = rounded(value, test.dtype);  // so that an unrotated KV row is exact
    }
    const int64_t extra = test.aligned ? 8 : 5;
    Placed qkv(ops, tokens, cols, values, extra), out(ops, tokens, int64_t{test.q_heads} * test.head_dim);
    PlacedInput rounded_out(ops, tokens, int64_t{test.q_heads} * test.head_dim, packing_of(test.dtype));
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

}  // namespace tokenmill
