// What the two kernels of tensor_attention.cu share: a block's work, its ring of tiles of keys and values, and one
// tile's products and softmax.
//
// Keys and values come by asynchronous copies. Queries, keys, values and softmax weights are bf16 or fp16 (T), scores,
// softmax and sums fp32.
#pragma once

#include "ops/cuda/device_math.cuh"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/tensor_attention.h"

namespace tokenmill {

constexpr int kTile = 64;  // keys
constexpr int kAll = 0x7fffffff;

template <int kDim>
constexpr int kStageBytes = 2 * kTile * kDim * 2;

// What a block works on.
template <class T, int kDim, int kThreads>
struct Work {
  using Value = T;
  const TensorAttentionArgs& args;
  CudaAttentionItem item;
  PlanRow row;
  int head, count, past, begin, end, tiles;  // keys [begin, end)
  int visible_begin;                         // what lies before is in no row's window, and maybe not held
  uint32_t ring;

  __device__ Work(const TensorAttentionArgs& args_in, uint32_t ring_in, int rows_max)
      : args(args_in), item(args_in.items[blockIdx.x]), head(blockIdx.y), ring(ring_in) {
    row = args.rows[item.row];
    count = min(rows_max, row.q_len * args.group - item.first);
    past = row.kv_len - row.q_len;
    const int first_position = past + item.first / args.group;
    const int last = past + (item.first + count - 1) / args.group + 1;
    visible_begin = args.window > 0 ? max(0, first_position - args.window + 1) : 0;
    const int first = visible_begin / kTile * kTile;
    const int splits = max(item.num_splits, 1);
    const int span = ((last - first + splits - 1) / splits + kTile - 1) / kTile * kTile;
    begin = first + item.split * span;
    end = min(last, begin + span);
    tiles = end > begin ? (end - begin + kTile - 1) / kTile : 0;
  }

  __device__ int query(int r) const { return row.token_begin + (item.first + r) / args.group; }
  __device__ int query_head(int r) const { return head * args.group + (item.first + r) % args.group; }

  // A position's key in the cache; its value is a page further.
  __device__ std::byte* key(int position) const {
    const int page = 1 << args.page_shift;
    const int32_t block = args.tables[row.block_begin + (position >> args.page_shift)];
    return args.kv + block * args.block_bytes + (int64_t{head} * 2 * page + (position & (page - 1))) * (kDim * 2);
  }
  __device__ int64_t value_offset() const { return (int64_t{1} << args.page_shift) * kDim * 2; }
  __device__ uint32_t stage(int tile) const { return ring + tile % args.stages * kStageBytes<kDim>; }

  // Copies the keys and values of a tile whose positions are in [from, to); zeros past the end
  // and before the window.
  __device__ void fetch(int tile, int from, int to) const {
    constexpr int kChunks = kDim / 8, kKeys = kThreads / kChunks, kPasses = kTile / kKeys;
    const int chunk = threadIdx.x % kChunks, first = threadIdx.x / kChunks;
    const std::byte* source[kPasses];
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      source[i] = key(max(visible_begin, min(begin + tile * kTile + first + i * kKeys, end - 1))) + chunk * 16;
    }
    const int64_t to_value = value_offset();
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const int slot = first + i * kKeys, position = begin + tile * kTile + slot;
      if (position < from || position >= to) continue;
      const uint32_t target = stage(tile) + swizzled<kDim>(slot, chunk);
      const bool there = position >= visible_begin && position < end;
      copy_async16(target, source[i], there);
      copy_async16(target + kTile * kDim * 2, source[i] + to_value, there);
    }
  }

  // Four values of a row of sums.
  __device__ void put(int r, int d, float4 v, float scale) const {
    const int64_t at = query(r) * args.out_stride + int64_t{query_head(r)} * kDim + d;
    v = {v.x * scale, v.y * scale, v.z * scale, v.w * scale};
    if (args.out_half != nullptr) {
      *reinterpret_cast<uint2*>(args.out_half + at) = {pair_of<T>(v.x, v.y), pair_of<T>(v.z, v.w)};
    } else {
      *reinterpret_cast<float4*>(args.out + at) = v;
    }
  }
};

// Rounded queries of `rows` rows in shared memory, zeros past the count.
template <int kDim, class W>
__device__ void load_queries(const W& work, uint8_t* target, int rows) {
  using T = typename W::Value;
  for (int i = threadIdx.x; i < rows * kDim / 4; i += blockDim.x) {
    const int r = i / (kDim / 4), d = i % (kDim / 4) * 4;
    uint2 bits{};
    if (r < work.count) {
      const int64_t at = work.query(r) * work.args.q_stride + work.query_head(r) * kDim;
      if (work.args.q_half != nullptr) {
        bits = __ldcg(reinterpret_cast<const uint2*>(work.args.q_half + at * 2 + d));
      } else {
        const float4 v = __ldcg(reinterpret_cast<const float4*>(work.args.q + at + d));
        bits = {pair_of<T>(v.x, v.y), pair_of<T>(v.z, v.w)};
      }
    }
    *reinterpret_cast<uint2*>(target + swizzled<kDim>(r, d / 8) + d % 8 * 2) = bits;
  }
}

// Sums of one warp's 16 rows.
template <int kDim>
struct RowSums {
  float sums[kDim / 8][4] = {};
  float peak[2] = {kLowest, kLowest}, total[2] = {};  // of rows g and g + 8; totals of the lane's own keys
};

// One tile: the warp's 16 rows, of which the first is `row_base`, times kKeys keys from slot `key_base`.
template <int kDim, int kKeys, class W>
__device__ void attend_tile(const W& work, const uint32_t (&q)[kDim / 16][4], int tile, int row_base, int key_base,
                            RowSums<kDim>& state) {
  using T = typename W::Value;
  const TensorAttentionArgs& args = work.args;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const uint32_t keys = work.stage(tile), values = keys + kTile * kDim * 2;
  float scores[kKeys / 8][4] = {};
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
#pragma unroll
    for (int n = 0; n < kKeys / 16; ++n) {
      uint32_t b[4];  // keys 0-7: dims low, high; keys 8-15: dims low, high
      load_matrices(b, keys + swizzled<kDim>(key_base + n * 16 + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
      mma<T>(scores[2 * n], q[k][0], q[k][1], q[k][2], q[k][3], b[0], b[1]);
      mma<T>(scores[2 * n + 1], q[k][0], q[k][1], q[k][2], q[k][3], b[2], b[3]);
    }
  }
  const int first_key = work.begin + tile * kTile + key_base;
  // Interior tiles are visible to all rows.
  const int first_query = work.past + (work.item.first + row_base) / args.group;
  const bool masked =
      first_key + kKeys > min(work.end, first_query + 1) || row_base + 16 > work.count || args.window > 0;
  const float scale = args.softcap > 0 ? args.scale : args.scale * kLog2e;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = row_base + g + half * 8, position = work.past + (work.item.first + r) / args.group;
    float best = kLowest;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float& score = scores[n][half * 2 + j];
        score *= scale;
        if (args.softcap > 0) score = args.softcap * tanhf(score / args.softcap) * kLog2e;
        if (masked) {
          const int key = first_key + n * 8 + 2 * t + j;
          const bool visible =
              r < work.count && key < work.end && key <= position && (args.window == 0 || key > position - args.window);
          if (!visible) score = -INFINITY;
        }
        best = fmaxf(best, score);
      }
    }
    best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, 1));
    best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, 2));
    const float peak = fmaxf(state.peak[half], best), factor = exp2_fast(state.peak[half] - peak);
    state.peak[half] = peak;
    float total = 0;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 2; ++j) total += scores[n][half * 2 + j] = exp2_fast(scores[n][half * 2 + j] - peak);
    }
    state.total[half] = state.total[half] * factor + total;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      state.sums[n][half * 2] *= factor;
      state.sums[n][half * 2 + 1] *= factor;
    }
  }
#pragma unroll
  for (int k = 0; k < kKeys / 16; ++k) {
    const auto& low = scores[2 * k];
    const auto& high = scores[2 * k + 1];
    const uint32_t a0 = pair_of<T>(low[0], low[1]), a1 = pair_of<T>(low[2], low[3]);
    const uint32_t a2 = pair_of<T>(high[0], high[1]), a3 = pair_of<T>(high[2], high[3]);
#pragma unroll
    for (int n = 0; n < kDim / 16; ++n) {
      uint32_t b[4];  // dims 0-7: keys low, high; dims 8-15: keys low, high
      load_matrices_transposed(b, values + swizzled<kDim>(key_base + k * 16 + lane % 16, 2 * n + lane / 16));
      mma<T>(state.sums[2 * n], a0, a1, a2, a3, b[0], b[1]);
      mma<T>(state.sums[2 * n + 1], a0, a1, a2, a3, b[2], b[3]);
    }
  }
}

// Calls attend(tile) for all tiles in order. The first ones, as many as there are stages, are under way, each a group
// of copies, and one more group follows them.
template <class W, class Attend>
__device__ void for_each_tile(const W& work, Attend&& attend) {
  const int stages = work.args.stages;
  if (work.tiles <= stages) {
    wait_copies<0>();
    __syncthreads();
    for (int tile = 0; tile < work.tiles; ++tile) attend(tile);
    return;
  }
  for (int tile = 0; tile < work.tiles; ++tile) {
    // At the last of the first tiles this includes the group that follows them.
    if (stages == 2) {
      wait_copies<1>();
    } else {
      wait_copies<kTensorAttentionStagesMax - 1>();
    }
    __syncthreads();
    attend(tile);
    __syncthreads();
    if (tile + stages < work.tiles) work.fetch(tile + stages, 0, kAll);
    commit_copies();
  }
}

template <int kDim>
__device__ void load_query_fragments(uint32_t (&q)[kDim / 16][4], uint32_t queries, int row_base) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    load_matrices(q[k], queries + swizzled<kDim>(row_base + lane % 16, 2 * k + lane / 16));
  }
}

}  // namespace tokenmill
