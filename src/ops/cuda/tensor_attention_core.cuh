// What few_rows_attention.cu and many_rows_attention.cu share: a block's work, its ring of tiles of keys and values,
// and how they are launched.
//
// Keys and values come by asynchronous copies. Queries, keys, values and softmax weights are bf16 or fp16 (T), scores,
// softmax and sums fp32.
#pragma once

#include "base/check.h"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/tensor_attention.h"

namespace tokenmill {

constexpr int kTile = kTensorTile;
constexpr int kAll = 0x7fffffff;

template <int kDim>
constexpr int kStageBytes = tensor_stage_bytes(kDim);

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

  // Whether the last row's own key is among the block's.
  __device__ bool has_new() const { return past >= begin && past < end; }
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

inline void launch_attention(void (*kernel)(TensorAttentionArgs), int warps, size_t bytes,
                             const TensorAttentionArgs& args, int num_items, cudaStream_t stream, bool early) {
  TM_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  const dim3 grid(static_cast<unsigned>(num_items), static_cast<unsigned>(args.kv_heads));
  launch_early("attention", kernel, grid, dim3(static_cast<unsigned>(32 * warps)), bytes, stream, early, args);
}

}  // namespace tokenmill
