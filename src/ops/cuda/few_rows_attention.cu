// Rows of few queries by asynchronous copies: each of four warps takes 16 of a tile's 64 keys, four more those of the
// second tile where there are two.
#include "ops/cuda/tensor_attention.h"

#include <algorithm>

#include "base/check.h"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/few_rows_attention_core.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/mma.cuh"

namespace tokenmill {
namespace {

constexpr int kTileWarps = kTile / kWarpKeys;

template <int kDim, int kGroups>
constexpr size_t shared_bytes(int stages) {
  return 16 * kDim * 2 + std::max(stages * kStageBytes<kDim>, kGroups * kTileWarps * 16 * kDim * 4);
}
// rotate_queries(), with the new key and value in the ring too if its tile has been fetched without them.
template <int kDim, class W>
__device__ void rotate_and_write(const W& work, uint8_t* queries, uint8_t* ring, int fetched) {
  const int tile = (work.past - work.begin) / kTile, slot = (work.past - work.begin) % kTile;
  const bool is_fetched = work.has_new() && tile < fetched;
  uint8_t* const keys = ring + tile % work.args.stages * kStageBytes<kDim>;
  uint8_t* const values = keys + kTile * kDim * 2;
  const auto put_key = [&](int d, RotatedPairs pairs) {
    if (!is_fetched) return;
    *reinterpret_cast<uint32_t*>(keys + swizzled<kDim>(slot, d / 8) + d % 8 * 2) = pairs.low;
    *reinterpret_cast<uint32_t*>(keys + swizzled<kDim>(slot, (d + kDim / 2) / 8) + d % 8 * 2) = pairs.high;
  };
  const auto put_value = [&](int d, uint2 bits) {
    if (is_fetched) *reinterpret_cast<uint2*>(values + swizzled<kDim>(slot, d / 8) + d % 8 * 2) = bits;
  };
  rotate_queries<kDim>(work, queries, put_key, put_value);
  if (!work.has_new()) return;
  if (!is_fetched) return __threadfence();  // the tile's copies will read it
  // No copy fills the rest of the tile, and a weight of zero times NaN is NaN.
  for (int i = threadIdx.x; i < (kTile - 1 - slot) * (kDim / 8); i += blockDim.x) {
    const uint32_t at = swizzled<kDim>(slot + 1 + i / (kDim / 8), i % (kDim / 8));
    *reinterpret_cast<uint4*>(keys + at) = uint4{};
    *reinterpret_cast<uint4*>(values + at) = uint4{};
  }
}

// kGroups groups of four warps take the tiles by turns: more than one where all tiles are there at once. Up to 8
// kEights query rows.
template <class T, int kDim, int kGroups, int kEights, bool kRotate>
__global__ void __launch_bounds__(32 * kGroups * kTileWarps, 2) few_rows_kernel(const TensorAttentionArgs args) {
  constexpr int kWarps = kGroups * kTileWarps;
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ float peaks[kWarps][16], totals[kWarps][16];
  uint8_t* const ring = shared + 16 * kDim * 2;
  let_next_start();
  const Work<T, kDim, 32 * kWarps> work(args, shared_address(ring), kTensorFewRows);
  if (work.item.num_splits == 0) return wait_for_previous();
  const int fetched = min(work.tiles, args.stages);
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
  KeySums<kDim, kEights> state;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first_slot = warp % kTileWarps * kWarpKeys;
  const auto attend = [&](int tile) {
    const int first_key = work.begin + tile * kTile + first_slot;
    if (first_key >= work.end) return;
    const uint32_t keys = work.stage(tile), values = keys + kTile * kDim * 2;
    attend_keys(
        work, q, first_key, [&](int k) { return keys + swizzled<kDim>(first_slot + lane % 16, 2 * k + lane / 16); },
        [&](int n) { return values + swizzled<kDim>(first_slot + lane % 8 + lane / 16 * 8, 2 * n + lane / 8 % 2); },
        state);
  };
  if constexpr (kGroups == 1) {
    for_each_tile(work, attend);
  } else {
    wait_copies<0>();
    __syncthreads();
    const int tile = warp / kTileWarps;
    if (tile < work.tiles) attend(tile);
  }
  wait_copies<0>();
  __syncthreads();
  const WarpSums<kDim, kWarps> warp_sums{peaks, totals, reinterpret_cast<float*>(ring), 16 * kDim};
  warp_sums.put(state);
  finish_block(work, warp_sums);
}

template <class T, int kDim, int kGroups, int kEights>
void launch(const TensorAttentionArgs& args, int num_items, cudaStream_t stream, bool early) {
  const auto kernel = args.cos != nullptr ? few_rows_kernel<T, kDim, kGroups, kEights, true>
                                          : few_rows_kernel<T, kDim, kGroups, kEights, false>;
  launch_attention(kernel, kGroups * kTileWarps, shared_bytes<kDim, kGroups>(args.stages), args, num_items, stream,
                   early);
}

template <class T, int kDim>
void launch(const TensorAttentionArgs& args, int num_items, cudaStream_t stream, bool early) {
  const auto run = args.two_tiles       ? launch<T, kDim, 2, 1>
                   : args.rows_max <= 8 ? launch<T, kDim, 1, 1>
                                        : launch<T, kDim, 1, 2>;
  run(args, num_items, stream, early);
}

}  // namespace

void launch_few_row_attention(const TensorAttentionArgs& args, int num_items, cudaStream_t stream, bool early) {
  TM_CHECK(args.rows_max <= kTensorFewRows && (!args.two_tiles || args.rows_max <= 8));
  choose_launch(args, launch<uint16_t, 64>, launch<uint16_t, 128>, launch<Float16, 64>, launch<Float16, 128>)(
      args, num_items, stream, early);
}

}  // namespace tokenmill
