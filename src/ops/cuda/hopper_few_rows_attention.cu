// Rows of few queries on sm_90: each warp has a ring of its own, which tensor copies fill with 16 keys and values at a
// time, and waits for no other warp before the end.
#include "ops/cuda/hopper_attention.h"

#include <algorithm>

#include "base/check.h"
#include "ops/cuda/few_rows_attention_core.cuh"
#include "ops/cuda/hopper.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/tensor_map.h"

namespace tokenmill {
namespace {

struct HopperFewArgs {
  CUtensorMap kv;  // boxes [box_rows / 8][dims / 64][8][64] of the whole KV memory's rows
  TensorAttentionArgs attention;
  int box_rows;        // the page's, but at most 16
  int rows_per_block;  // of the KV memory: kv_heads * 2 * page
  int rows_total;
  int stages;  // of a warp's ring
};

#if __CUDA_ARCH_FEAT_SM90_ALL

// 16 keys and their values.
template <int kDim>
constexpr int kUnitBytes = 4 * kGroupBytes<kDim>;

// Where a row of a unit's keys or values has eight dimensions.
template <int kDim>
__device__ uint32_t place_of(int row, int chunk) {
  return static_cast<uint32_t>(row / 8 * kGroupBytes<kDim> + chunk / 8 * kBlockBytes + row % 8 * 128 +
                               (chunk % 8 ^ row % 8) * 16);
}

// A warp's ring. Units are numbered by the warp: its first 16 keys, its next ...
template <int kDim, int kWarps, class W>
struct WarpRing {
  const HopperFewArgs& args;
  const W& work;
  uint8_t* memory;
  uint32_t address, barriers;
  int units;
  int next_group = 0;  // of the lane's copy of the unit that is fetched next

  // memory and barriers of all warps' rings.
  __device__ WarpRing(const HopperFewArgs& args_in, const W& work_in, uint8_t* memory_in, uint64_t* barriers_in)
      : args(args_in), work(work_in) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    memory = memory_in + warp * args.stages * kUnitBytes<kDim>;
    address = shared_address(memory);
    barriers = shared_address(barriers_in + warp * kTensorAttentionStagesMax);
    if (lane < args.stages) init_barrier(barriers + 8 * lane, 1);
    fence_barriers();
    __syncwarp();
    const int all = (work.end - work.begin + kWarpKeys - 1) / kWarpKeys;
    units = (all - warp + kWarps - 1) / kWarps;
  }
  __device__ int first_key(int unit) const {
    return work.begin + (unit * kWarps + static_cast<int>(threadIdx.x) / 32) * kWarpKeys;
  }
  // Lanes copy keys, then values, of one page each. Past the end, or before the window: zeros.
  __device__ void look_up(int unit) {
    const int lane = threadIdx.x % 32, boxes = kWarpKeys / args.box_rows, page = 1 << work.args.page_shift;
    const int position = first_key(unit) + lane % boxes * args.box_rows;
    const bool is_there = lane < 2 * boxes && position < work.end && position + args.box_rows > work.visible_begin;
    int row = args.rows_total;
    if (is_there) {
      row = work.args.tables[work.row.block_begin + (position >> work.args.page_shift)] * args.rows_per_block +
            (work.head * 2 + lane / boxes) * page + (position & (page - 1));
    }
    next_group = row / 8;
  }
  __device__ void fetch(int stage) {
    const int lane = threadIdx.x % 32, boxes = kWarpKeys / args.box_rows;
    const uint32_t full = barriers + 8 * stage;
    if (lane == 0) expect_bytes(full, kUnitBytes<kDim>);
    __syncwarp();
    if (lane < 2 * boxes) {
      copy_row_groups(address + stage * kUnitBytes<kDim> + lane * (kUnitBytes<kDim> / (2 * boxes)), &args.kv,
                      next_group, full);
    }
  }
};

// The new key and value into their place, zeros to what a page has past the end: that may be NaN, and a weight of zero
// times NaN is NaN. fresh: null where all keys are in the cache.
template <int kDim, class W>
__device__ void complete_unit(const W& work, uint8_t* unit, int first_key, const uint8_t* fresh) {
  constexpr int kChunks = kDim / 8, kValues = 2 * kGroupBytes<kDim>;
  const int lane = threadIdx.x % 32;
  for (int i = lane; i < (first_key + kWarpKeys - work.end) * kChunks; i += 32) {
    const int row = work.end - first_key + i / kChunks;
    *reinterpret_cast<uint4*>(unit + kValues + place_of<kDim>(row, i % kChunks)) = uint4{};
  }
  const int row = work.past - first_key;
  if (fresh != nullptr && row >= 0 && row < kWarpKeys && lane < 2 * kChunks) {
    *reinterpret_cast<uint4*>(unit + lane / kChunks * kValues + place_of<kDim>(row, lane % kChunks)) =
        *reinterpret_cast<const uint4*>(fresh + lane * 16);
  }
  __syncwarp();
}

// All units of a warp. Those of the first stages are under way, the next one's place is looked up.
template <int kDim, int kEights, class Ring>
__device__ void attend_units(Ring& ring, const uint8_t* queries, const uint8_t* fresh, KeySums<kDim, kEights>& state) {
  const int lane = threadIdx.x % 32, stages = ring.args.stages;
  uint32_t q[kDim / 16][4];
  load_query_fragments<kDim>(q, shared_address(queries), 0);
  const uint32_t key_place = place_of<kDim>(lane % 16, lane / 16);
  const uint32_t value_place = 2 * kGroupBytes<kDim> + place_of<kDim>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
  // 16 dimensions further each: another place among the eight of a row of 128 bytes, then another block.
  const auto further = [](uint32_t place, int n) { return (place ^ n % 4 * 32) + n / 4 * kBlockBytes; };
  int fetched = stages;
  Turn turn;
  for (int unit = 0; unit < ring.units; ++unit, turn.step(stages)) {
    const int first_key = ring.first_key(unit);
    const uint32_t base = ring.address + turn.stage * kUnitBytes<kDim>;
    wait_barrier(ring.barriers + 8 * turn.stage, turn.parity);
    if (first_key + kWarpKeys > ring.work.past) {
      complete_unit<kDim>(ring.work, ring.memory + turn.stage * kUnitBytes<kDim>, first_key, fresh);
    }
    attend_keys(
        ring.work, q, first_key, [&](int k) { return further(base + key_place, k); },
        [&](int n) { return further(base + value_place, n); }, state);
    __syncwarp();
    if (fetched < ring.units) {
      ring.fetch(turn.stage);
      if (++fetched < ring.units) ring.look_up(fetched);
    }
  }
}

// kWarps warps take runs of 16 keys by turns. Up to 8 kEights query rows.
template <class T, int kDim, int kWarps, int kEights, bool kRotate>
__device__ void attend_block(const HopperFewArgs& args, uint8_t* shared) {
  __shared__ float peaks[kWarps][16], totals[kWarps][16];
  __shared__ __align__(8) uint64_t barriers[kWarps * kTensorAttentionStagesMax];
  __shared__ __align__(16) uint8_t fresh[2 * kDim * 2];  // the new key, the new value
  using BlockWork = Work<T, kDim, 32 * kWarps>;
  const BlockWork work(args.attention, 0, kTensorFewRows);
  if (work.item.num_splits == 0) return wait_for_previous();
  uint8_t* const queries = shared + kWarps * args.stages * kUnitBytes<kDim>;
  WarpRing<kDim, kWarps, BlockWork> ring(args, work, shared, barriers);
  // What the cache held before this step is fetched while the kernel before this one still runs; the new key and value
  // are put in later where it is this kernel that writes them.
  const int first = min(ring.units, args.stages);
  int fetched = 0;
  const auto fetch_next = [&] {
    ring.look_up(fetched);
    ring.fetch(fetched++);
  };
  while (fetched < first && (kRotate || ring.first_key(fetched) + kWarpKeys <= work.past)) fetch_next();
  wait_for_previous();
  while (fetched < first) fetch_next();
  if (fetched < ring.units) ring.look_up(fetched);
  if constexpr (kRotate) {
    const auto put_key = [&](int d, RotatedPairs pairs) {
      *reinterpret_cast<uint32_t*>(fresh + d * 2) = pairs.low;
      *reinterpret_cast<uint32_t*>(fresh + d * 2 + kDim) = pairs.high;
    };
    const auto put_value = [&](int d, uint2 bits) { *reinterpret_cast<uint2*>(fresh + kDim * 2 + d * 2) = bits; };
    rotate_queries<kDim>(work, queries, put_key, put_value);
  } else {
    load_queries<kDim>(work, queries, kTensorFewRows);
  }
  __syncthreads();
  KeySums<kDim, kEights> state;
  attend_units(ring, queries, kRotate ? fresh : nullptr, state);
  const WarpSums<kDim, kWarps> warp_sums{peaks, totals, reinterpret_cast<float*>(shared),
                                         args.stages * kUnitBytes<kDim> / 4};
  warp_sums.put(state);
  finish_block(work, warp_sums);
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

// Registers for three blocks of four warps a multiprocessor, or one of eight.
template <class T, int kDim, int kWarps, int kEights, bool kRotate>
__global__ void __launch_bounds__(32 * kWarps, 12 / kWarps)
    hopper_few_rows_kernel(const __grid_constant__ HopperFewArgs args) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t shared[];
  let_next_start();
  attend_block<T, kDim, kWarps, kEights, kRotate>(args, shared);
#endif
}

template <class T, int kDim, int kWarps, int kEights>
void launch(const HopperFewArgs& args, int num_items, cudaStream_t stream) {
  const size_t bytes = kTensorFewRows * kDim * 2 +
                       static_cast<size_t>(kWarps * kWarpKeys * args.stages) * tensor_stage_bytes(kDim) / kTensorTile;
  const auto kernel = args.attention.cos != nullptr ? hopper_few_rows_kernel<T, kDim, kWarps, kEights, true>
                                                    : hopper_few_rows_kernel<T, kDim, kWarps, kEights, false>;
  TM_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  const dim3 grid(static_cast<unsigned>(num_items), static_cast<unsigned>(args.attention.kv_heads));
  launch_early<HopperFewArgs>("attention", kernel, grid, dim3(32 * kWarps), bytes, stream, true, args);
}

template <class T, int kDim>
void launch(const HopperFewArgs& args, int num_items, cudaStream_t stream) {
  const auto run = args.attention.two_tiles       ? launch<T, kDim, 8, 1>
                   : args.attention.rows_max <= 8 ? launch<T, kDim, 4, 1>
                                                  : launch<T, kDim, 4, 2>;
  run(args, num_items, stream);
}

}  // namespace

void launch_hopper_few_row_attention(const TensorAttentionArgs& args, int64_t num_blocks, int num_items,
                                     cudaStream_t stream) {
  TM_CHECK(args.rows_max <= kTensorFewRows && (!args.two_tiles || args.rows_max <= 8));
  const int page = 1 << args.page_shift, box_rows = std::min(page, kWarpKeys);
  const int64_t rows_per_block = args.block_bytes / (args.head_dim * 2), rows = num_blocks * rows_per_block;
  TM_CHECK(page >= 8 && args.stages <= kTensorAttentionStagesMax && rows < (int64_t{1} << 31));
  const HopperFewArgs kernel{.kv = row_groups_map(args.kv, rows, args.head_dim, box_rows, args.head_dim / 64),
                             .attention = args,
                             .box_rows = box_rows,
                             .rows_per_block = static_cast<int>(rows_per_block),
                             .rows_total = static_cast<int>(rows),
                             .stages = args.two_tiles ? 1 : args.stages};
  choose_launch(args, launch<uint16_t, 64>, launch<uint16_t, 128>, launch<Float16, 64>, launch<Float16, 128>)(
      kernel, num_items, stream);
}

}  // namespace tokenmill
