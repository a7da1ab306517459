// Two kernels over one core. Rows of few queries: the query heads of a KV head are the rows of one 16-row product,
// each of the four warps takes 16 of a tile's 64 keys, long rows are split over blocks and merged by the last one.
// Rows of many queries: each of the eight warps has 16 (query, head) rows of its own and takes all keys of a tile.
//
// Keys and values come by asynchronous copies into a ring of tiles. Queries, keys, values and softmax weights are
// bf16 or fp16 (T), scores, softmax and sums fp32.
#include "ops/cuda/tensor_attention.h"

#include <algorithm>

#include "base/check.h"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/mma.cuh"

namespace tokenmill {
namespace {

constexpr int kTile = 64;  // keys
constexpr int kFewWarps = 4, kManyWarps = kTensorManyRows / 16;
constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLowest = -1e30f;  // below every score, and finite: differences of it are no NaN
constexpr int kAll = 0x7fffffff;

template <int kDim>
constexpr int kStageBytes = 2 * kTile * kDim * 2;
template <int kDim>
constexpr int kMergeStride = kDim + 4;

template <int kDim>
constexpr size_t few_shared_bytes(int stages) {
  return 16 * kDim * 2 + std::max(stages * kStageBytes<kDim>, kFewWarps * 16 * kMergeStride<kDim> * 4);
}
template <int kDim>
constexpr size_t many_shared_bytes(int stages) {
  return kTensorManyRows * kDim * 2 + stages * kStageBytes<kDim>;
}

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
    float4 v{};
    if (r < work.count) {
      const float* const q = work.args.q + work.query(r) * work.args.q_stride + work.query_head(r) * kDim + d;
      v = __ldcg(reinterpret_cast<const float4*>(q));
    }
    *reinterpret_cast<uint2*>(target + swizzled<kDim>(r, d / 8) + d % 8 * 2) = {pair_of<T>(v.x, v.y),
                                                                                pair_of<T>(v.z, v.w)};
  }
}

// Dimensions d, d + 1 and their partners half a head further, rotated and rounded.
struct RotatedPairs {
  uint32_t low, high;
};
template <class T, int kDim>
__device__ RotatedPairs rotate(const float* head, const float* cos, const float* sin, int d) {
  const float2 a = __ldcg(reinterpret_cast<const float2*>(head + d));
  const float2 b = __ldcg(reinterpret_cast<const float2*>(head + d + kDim / 2));
  const float2 c = __ldcg(reinterpret_cast<const float2*>(cos + d)),
               s = __ldcg(reinterpret_cast<const float2*>(sin + d));
  return {pair_of<T>(a.x * c.x - b.x * s.x, a.y * c.y - b.y * s.y),
          pair_of<T>(b.x * c.x + a.x * s.x, b.y * c.y + a.y * s.y)};
}

// load_queries() of a row of one query that is not rotated yet. The block that has its position among its keys also
// writes its key and value, to the cache and, where the tile has been fetched without them, to shared memory.
template <int kDim, class W>
__device__ void rotate_and_write(const W& work, uint8_t* queries, uint8_t* ring, int fetched) {
  using T = typename W::Value;
  const TensorAttentionArgs& args = work.args;
  const float* const qkv = args.q + work.row.token_begin * args.q_stride;
  const float* const cos = args.cos + work.row.token_begin * args.rope_stride;
  const float* const sin = args.sin + work.row.token_begin * args.rope_stride;
  const int tid = threadIdx.x, threads = blockDim.x;
  for (int i = tid; i < 16 * (kDim / 4); i += threads) {
    const int r = i / (kDim / 4), d = i % (kDim / 4) * 2;
    RotatedPairs pairs{};
    if (r < work.count) pairs = rotate<T, kDim>(qkv + (work.head * args.group + r) * kDim, cos, sin, d);
    *reinterpret_cast<uint32_t*>(queries + swizzled<kDim>(r, d / 8) + d % 8 * 2) = pairs.low;
    *reinterpret_cast<uint32_t*>(queries + swizzled<kDim>(r, (d + kDim / 2) / 8) + d % 8 * 2) = pairs.high;
  }
  if (work.past < work.begin || work.past >= work.end) return;
  std::byte* const target = work.key(work.past);
  const int tile = (work.past - work.begin) / kTile, slot = (work.past - work.begin) % kTile;
  const bool is_fetched = tile < fetched;
  uint8_t* const keys = ring + tile % args.stages * kStageBytes<kDim>;
  uint8_t* const values = keys + kTile * kDim * 2;
  if (tid < kDim / 4) {
    const int d = tid * 2;
    const RotatedPairs pairs = rotate<T, kDim>(qkv + (args.q_heads + work.head) * kDim, cos, sin, d);
    *reinterpret_cast<uint32_t*>(target + d * 2) = pairs.low;
    *reinterpret_cast<uint32_t*>(target + d * 2 + kDim) = pairs.high;
    if (is_fetched) {
      *reinterpret_cast<uint32_t*>(keys + swizzled<kDim>(slot, d / 8) + d % 8 * 2) = pairs.low;
      *reinterpret_cast<uint32_t*>(keys + swizzled<kDim>(slot, (d + kDim / 2) / 8) + d % 8 * 2) = pairs.high;
    }
  } else if (tid >= 64 && tid < 64 + kDim / 4) {
    const int d = (tid - 64) * 4;
    const float* const v = qkv + (args.q_heads + args.kv_heads + work.head) * kDim + d;
    const float4 value = __ldcg(reinterpret_cast<const float4*>(v));
    const uint2 bits = {pair_of<T>(value.x, value.y), pair_of<T>(value.z, value.w)};
    *reinterpret_cast<uint2*>(target + work.value_offset() + d * 2) = bits;
    if (is_fetched) *reinterpret_cast<uint2*>(values + swizzled<kDim>(slot, d / 8) + d % 8 * 2) = bits;
  }
  if (!is_fetched) return __threadfence();  // the tile's copies will read it
  // No copy fills the rest of the tile, and a weight of zero times NaN is NaN.
  for (int i = tid; i < (kTile - 1 - slot) * (kDim / 8); i += threads) {
    const uint32_t at = swizzled<kDim>(slot + 1 + i / (kDim / 8), i % (kDim / 8));
    *reinterpret_cast<uint4*>(keys + at) = uint4{};
    *reinterpret_cast<uint4*>(values + at) = uint4{};
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

// A partial result: sums [16][kDim], peaks [16], totals [16].
template <int kDim, class W>
__device__ void merge_splits(const W& work, const float* partials) {
  constexpr int kFloats = kTensorFewRows * (kDim + 2);
  for (int i = threadIdx.x; i < work.count * (kDim / 4); i += blockDim.x) {
    const int r = i / (kDim / 4), d = i % (kDim / 4) * 4;
    float best = kLowest, total = 0;
    float4 v{};
#pragma unroll 8
    for (int s = 0; s < work.item.num_splits; ++s) {
      const float* const partial = partials + s * kFloats;
      const float peak = __ldcg(partial + 16 * kDim + r), sum = __ldcg(partial + 16 * kDim + 16 + r);
      const float4 o = __ldcg(reinterpret_cast<const float4*>(partial + r * kDim + d));
      const float now = fmaxf(best, peak), old = exp2_fast(best - now), factor = exp2_fast(peak - now);
      best = now;
      total = total * old + factor * sum;
      v = {v.x * old + factor * o.x, v.y * old + factor * o.y, v.z * old + factor * o.z, v.w * old + factor * o.w};
    }
    work.put(r, d, v, 1.0f / total);
  }
}

template <class T, int kDim, bool kRotate>
__global__ void __launch_bounds__(32 * kFewWarps) few_rows_kernel(const TensorAttentionArgs args) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ float peaks[kFewWarps][16], totals[kFewWarps][16];
  __shared__ bool is_last;
  uint8_t* const ring = shared + 16 * kDim * 2;
  let_next_start();
  const Work<T, kDim, 32 * kFewWarps> work(args, shared_address(ring), kTensorFewRows);
  if (work.item.num_splits == 0) return wait_for_previous();
  // What the cache held before this step is fetched while the kernel before this one still runs.
  const int fetched = min(work.tiles, args.stages);
  for (int tile = 0; tile < fetched; ++tile) {
    work.fetch(tile, 0, work.past);
    commit_copies();
  }
  wait_for_previous();
  if constexpr (kRotate) {
    commit_copies();
    rotate_and_write<kDim>(work, shared, ring, fetched);
  } else {
    for (int tile = 0; tile < fetched; ++tile) {
      if (work.begin + (tile + 1) * kTile > work.past) work.fetch(tile, work.past, kAll);
    }
    commit_copies();
    load_queries<kDim>(work, shared, 16);
  }
  __syncthreads();
  uint32_t q[kDim / 16][4];
  load_query_fragments<kDim>(q, shared_address(shared), 0);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  RowSums<kDim> state;
  for_each_tile(work, [&](int tile) { attend_tile<kDim, 16>(work, q, tile, 0, warp * 16, state); });

  wait_copies<0>();
  __syncthreads();
  float* const sums = reinterpret_cast<float*>(ring);  // [warp][16][kMergeStride]
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = state.total[half];
    total += __shfl_xor_sync(0xffffffffu, total, 1);
    total += __shfl_xor_sync(0xffffffffu, total, 2);
    const int r = g + half * 8;
    if (t == 0) {
      peaks[warp][r] = state.peak[half];
      totals[warp][r] = total;
    }
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      *reinterpret_cast<float2*>(sums + (warp * 16 + r) * kMergeStride<kDim> + n * 8 + 2 * t) = {
          state.sums[n][half * 2], state.sums[n][half * 2 + 1]};
    }
  }
  __syncthreads();
  constexpr int kFloats = kTensorFewRows * (kDim + 2);
  float* const partials = args.partials + (int64_t{blockIdx.y} * args.num_partials + work.item.partial) * kFloats;
  for (int i = threadIdx.x; i < work.count * (kDim / 4); i += 32 * kFewWarps) {
    const int r = i / (kDim / 4), d = i % (kDim / 4) * 4;
    float best = peaks[0][r], total = 0;
#pragma unroll
    for (int w = 1; w < kFewWarps; ++w) best = fmaxf(best, peaks[w][r]);
    float4 v{};
#pragma unroll
    for (int w = 0; w < kFewWarps; ++w) {
      const float factor = exp2_fast(peaks[w][r] - best);
      const float4 o = *reinterpret_cast<const float4*>(sums + (w * 16 + r) * kMergeStride<kDim> + d);
      v = {v.x + factor * o.x, v.y + factor * o.y, v.z + factor * o.z, v.w + factor * o.w};
      total += factor * totals[w][r];
    }
    if (work.item.num_splits == 1) {
      work.put(r, d, v, 1.0f / total);
      continue;
    }
    float* const partial = partials + work.item.split * kFloats;
    __stcg(reinterpret_cast<float4*>(partial + r * kDim + d), v);
    if (d == 0) {
      __stcg(partial + 16 * kDim + r, best);
      __stcg(partial + 16 * kDim + 16 + r, total);
    }
  }
  if (work.item.num_splits == 1) return;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    int* const counter = args.counters + work.item.unit * gridDim.y + blockIdx.y;
    is_last = atomicAdd(counter, 1) == work.item.num_splits - 1;
    if (is_last) *counter = 0;  // as the next call wants it
    __threadfence();
  }
  __syncthreads();
  if (is_last) merge_splits<kDim>(work, partials);
}

template <class T, int kDim>
__global__ void __launch_bounds__(32 * kManyWarps, 1) many_rows_kernel(const TensorAttentionArgs args) {
  extern __shared__ __align__(128) uint8_t shared[];
  let_next_start();
  const Work<T, kDim, 32 * kManyWarps> work(args, shared_address(shared + kTensorManyRows * kDim * 2), kTensorManyRows);
  wait_for_previous();
  for (int tile = 0; tile < min(work.tiles, args.stages); ++tile) {
    work.fetch(tile, 0, kAll);
    commit_copies();
  }
  commit_copies();
  load_queries<kDim>(work, shared, kTensorManyRows);
  __syncthreads();
  const int row_base = threadIdx.x / 32 * 16, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  uint32_t q[kDim / 16][4];
  load_query_fragments<kDim>(q, shared_address(shared), row_base);
  RowSums<kDim> state;
  const int last_query = work.past + (work.item.first + min(row_base + 15, work.count - 1)) / args.group;
  for_each_tile(work, [&](int tile) {
    // Tiles after the warp's last query are for warps below.
    if (row_base < work.count && work.begin + tile * kTile <= last_query) {
      attend_tile<kDim, kTile>(work, q, tile, row_base, 0, state);
    }
  });
  wait_copies<0>();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = state.total[half];
    total += __shfl_xor_sync(0xffffffffu, total, 1);
    total += __shfl_xor_sync(0xffffffffu, total, 2);
    const float inverse = 1.0f / total;
    const int r = row_base + g + half * 8;
    if (r >= work.count) continue;
    const int64_t at = work.query(r) * args.out_stride + int64_t{work.query_head(r)} * kDim + 2 * t;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      const float a = state.sums[n][half * 2] * inverse, b = state.sums[n][half * 2 + 1] * inverse;
      if (args.out_half != nullptr) {
        *reinterpret_cast<uint32_t*>(args.out_half + at + n * 8) = pair_of<T>(a, b);
      } else {
        *reinterpret_cast<float2*>(args.out + at + n * 8) = {a, b};
      }
    }
  }
}

void launch(const char* name, void (*kernel)(TensorAttentionArgs), int warps, size_t bytes,
            const TensorAttentionArgs& args, int num_items, cudaStream_t stream, bool early) {
  TM_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  const dim3 grid(static_cast<unsigned>(num_items), static_cast<unsigned>(args.kv_heads));
  launch_early(name, kernel, grid, dim3(static_cast<unsigned>(32 * warps)), bytes, stream, early, args);
}

template <class T, int kDim>
void launch_few(const TensorAttentionArgs& args, int num_items, cudaStream_t stream, bool early) {
  launch("attention", args.cos != nullptr ? few_rows_kernel<T, kDim, true> : few_rows_kernel<T, kDim, false>, kFewWarps,
         few_shared_bytes<kDim>(args.stages), args, num_items, stream, early);
}

template <class T, int kDim>
void launch_many(const TensorAttentionArgs& args, int num_items, cudaStream_t stream, bool early) {
  launch("attention", many_rows_kernel<T, kDim>, kManyWarps, many_shared_bytes<kDim>(args.stages), args, num_items,
         stream, early);
}

// The instance for the arguments' type and head size.
using Launch = void (*)(const TensorAttentionArgs&, int, cudaStream_t, bool);
Launch choose(const TensorAttentionArgs& args, Launch bf16_64, Launch bf16_128, Launch f16_64, Launch f16_128) {
  TM_CHECK(args.head_dim == 64 || args.head_dim == 128);
  if (args.dtype == DType::kF16) return args.head_dim == 64 ? f16_64 : f16_128;
  return args.head_dim == 64 ? bf16_64 : bf16_128;
}

}  // namespace

void launch_few_row_attention(const TensorAttentionArgs& args, int num_items, cudaStream_t stream, bool early) {
  choose(args, launch_few<uint16_t, 64>, launch_few<uint16_t, 128>, launch_few<Float16, 64>, launch_few<Float16, 128>)(
      args, num_items, stream, early);
}

void launch_many_row_attention(const TensorAttentionArgs& args, int num_items, cudaStream_t stream, bool early) {
  choose(args, launch_many<uint16_t, 64>, launch_many<uint16_t, 128>, launch_many<Float16, 64>,
         launch_many<Float16, 128>)(args, num_items, stream, early);
}

}  // namespace tokenmill
