// Two kernels over one core. Rows of few queries: the query heads of a KV head are the rows of one 16-row product,
// each of four warps takes 16 of a tile's 64 keys, four more those of the second tile where there are two; long rows
// are split over blocks and merged by the last one.
// Rows of many queries: each of the eight warps has 16 (query, head) rows of its own and takes all keys of a tile.
#include "ops/cuda/tensor_attention.h"

#include <algorithm>

#include "base/check.h"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/tensor_attention_core.cuh"

namespace tokenmill {
namespace {

constexpr int kTileWarps = 4, kManyWarps = kTensorManyRows / 16;

template <int kDim, int kGroups>
constexpr size_t few_shared_bytes(int stages) {
  return 16 * kDim * 2 + std::max(stages * kStageBytes<kDim>, kGroups * kTileWarps * 16 * kDim * 4);
}
template <int kDim>
constexpr size_t many_shared_bytes(int stages) {
  return kTensorManyRows * kDim * 2 + stages * kStageBytes<kDim>;
}

// Dimensions d, d + 1 and their partners half a head further, rotated and rounded.
struct RotatedPairs {
  uint32_t low, high;
};
struct PlainPairs {
  float2 a, b, c, s;
};
template <int kDim>
__device__ PlainPairs load_pairs(const float* head, const float* cos, const float* sin, int d) {
  return {__ldcg(reinterpret_cast<const float2*>(head + d)),
          __ldcg(reinterpret_cast<const float2*>(head + d + kDim / 2)),
          __ldcg(reinterpret_cast<const float2*>(cos + d)), __ldcg(reinterpret_cast<const float2*>(sin + d))};
}
template <class T>
__device__ RotatedPairs rotate(const PlainPairs& p) {
  return {pair_of<T>(p.a.x * p.c.x - p.b.x * p.s.x, p.a.y * p.c.y - p.b.y * p.s.y),
          pair_of<T>(p.b.x * p.c.x + p.a.x * p.s.x, p.b.y * p.c.y + p.a.y * p.s.y)};
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
  // The new key and value first, so that all is under way at once.
  const bool has_new = work.past >= work.begin && work.past < work.end;
  PlainPairs key{};
  float4 value{};
  if (has_new && tid < kDim / 4) {
    key = load_pairs<kDim>(qkv + (args.q_heads + work.head) * kDim, cos, sin, tid * 2);
  } else if (has_new && tid >= 64 && tid < 64 + kDim / 4) {
    const float* const v = qkv + (args.q_heads + args.kv_heads + work.head) * kDim + (tid - 64) * 4;
    value = __ldcg(reinterpret_cast<const float4*>(v));
  }
  for (int i = tid; i < 16 * (kDim / 4); i += threads) {
    const int r = i / (kDim / 4), d = i % (kDim / 4) * 2;
    RotatedPairs pairs{};
    if (r < work.count) pairs = rotate<T>(load_pairs<kDim>(qkv + (work.head * args.group + r) * kDim, cos, sin, d));
    *reinterpret_cast<uint32_t*>(queries + swizzled<kDim>(r, d / 8) + d % 8 * 2) = pairs.low;
    *reinterpret_cast<uint32_t*>(queries + swizzled<kDim>(r, (d + kDim / 2) / 8) + d % 8 * 2) = pairs.high;
  }
  if (!has_new) return;
  std::byte* const target = work.key(work.past);
  const int tile = (work.past - work.begin) / kTile, slot = (work.past - work.begin) % kTile;
  const bool is_fetched = tile < fetched;
  uint8_t* const keys = ring + tile % args.stages * kStageBytes<kDim>;
  uint8_t* const values = keys + kTile * kDim * 2;
  if (tid < kDim / 4) {
    const int d = tid * 2;
    const RotatedPairs pairs = rotate<T>(key);
    *reinterpret_cast<uint32_t*>(target + d * 2) = pairs.low;
    *reinterpret_cast<uint32_t*>(target + d * 2 + kDim) = pairs.high;
    if (is_fetched) {
      *reinterpret_cast<uint32_t*>(keys + swizzled<kDim>(slot, d / 8) + d % 8 * 2) = pairs.low;
      *reinterpret_cast<uint32_t*>(keys + swizzled<kDim>(slot, (d + kDim / 2) / 8) + d % 8 * 2) = pairs.high;
    }
  } else if (tid >= 64 && tid < 64 + kDim / 4) {
    const int d = (tid - 64) * 4;
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

// The warps' sums in shared memory, [warp][16][kDim] in the ring, and their peaks and totals.
template <int kDim, int kWarps>
struct WarpSums {
  float (*peaks)[16];
  float (*totals)[16];
  float* sums;

  // Runs of eight dimensions change places by the row, so that rows lie in different banks.
  __device__ static int at(int warp, int r, int d) { return (warp * 16 + r) * kDim + (d ^ (r & 7) * 8); }
  __device__ void put(const RowSums<kDim>& state) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
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
        *reinterpret_cast<float2*>(sums + at(warp, r, n * 8 + 2 * t)) = {state.sums[n][half * 2],
                                                                         state.sums[n][half * 2 + 1]};
      }
    }
  }

  // Rows of the output where the block saw all keys, else of its partial result.
  template <class W>
  __device__ void write(const W& work, float* partials) const {
    constexpr int kFloats = kTensorFewRows * (kDim + 2);
    for (int i = threadIdx.x; i < work.count * (kDim / 4); i += 32 * kWarps) {
      const int r = i / (kDim / 4), d = i % (kDim / 4) * 4;
      float best = peaks[0][r], total = 0;
#pragma unroll
      for (int w = 1; w < kWarps; ++w) best = fmaxf(best, peaks[w][r]);
      float4 v{};
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float factor = exp2_fast(peaks[w][r] - best);
        const float4 o = *reinterpret_cast<const float4*>(sums + at(w, r, d));
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
  }
};

// kGroups groups of four warps take the tiles by turns: more than one where all tiles are there at once.
template <class T, int kDim, int kGroups, bool kRotate>
__global__ void __launch_bounds__(32 * kGroups * kTileWarps, kGroups) few_rows_kernel(const TensorAttentionArgs args) {
  constexpr int kWarps = kGroups * kTileWarps;
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ float peaks[kWarps][16], totals[kWarps][16];
  __shared__ bool is_last;
  uint8_t* const ring = shared + 16 * kDim * 2;
  let_next_start();
  const Work<T, kDim, 32 * kWarps> work(args, shared_address(ring), kTensorFewRows);
  if (work.item.num_splits == 0) return wait_for_previous();
  const int fetched = min(work.tiles, args.stages);
  const WarpSums<kDim, kWarps> warp_sums{peaks, totals, reinterpret_cast<float*>(ring)};
  constexpr int kFloats = kTensorFewRows * (kDim + 2);
  float* const partials = args.partials + (int64_t{blockIdx.y} * args.num_partials + work.item.partial) * kFloats;
  // What the cache held before this step is fetched while the kernel before this one still runs.
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
  RowSums<kDim> state;
  const int warp = threadIdx.x / 32, first_key = warp % kTileWarps * 16;
  if constexpr (kGroups == 1) {
    for_each_tile(work, [&](int tile) { attend_tile<kDim, 16>(work, q, tile, 0, first_key, state); });
  } else {
    wait_copies<0>();
    __syncthreads();
    const int tile = warp / kTileWarps;
    if (tile < work.tiles) attend_tile<kDim, 16>(work, q, tile, 0, first_key, state);
  }
  wait_copies<0>();
  __syncthreads();
  warp_sums.put(state);
  __syncthreads();
  warp_sums.write(work, partials);
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

template <class T, int kDim, int kGroups>
void launch_groups(const TensorAttentionArgs& args, int num_items, cudaStream_t stream, bool early) {
  const auto kernel =
      args.cos != nullptr ? few_rows_kernel<T, kDim, kGroups, true> : few_rows_kernel<T, kDim, kGroups, false>;
  launch("attention", kernel, kGroups * kTileWarps, few_shared_bytes<kDim, kGroups>(args.stages), args, num_items,
         stream, early);
}

template <class T, int kDim>
void launch_few(const TensorAttentionArgs& args, int num_items, cudaStream_t stream, bool early) {
  const auto run = args.two_tiles ? launch_groups<T, kDim, 2> : launch_groups<T, kDim, 1>;
  run(args, num_items, stream, early);
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
