// Every block takes one unit after another: 128 (query, head) rows of one sequence and KV head. One warp keeps two
// stages of 128 keys filled by tensor copies, a page at a time, another those of the values, and two more have the next
// unit's queries ready; two groups of four warps have 64 rows each: scores by wgmma from shared memory, softmax in
// registers, and from there the product with the values (hopper_attention_core.cuh).
#include "ops/cuda/hopper_attention.h"

#include <algorithm>

#include "base/check.h"
#include "ops/cuda/hopper.cuh"
#include "ops/cuda/hopper_attention_core.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/tensor_map.h"

namespace tokenmill {
namespace {

constexpr int kStages = 2;  // of keys and values; and of queries
constexpr int kThreads = 128 * (kGroups + 1);
constexpr int64_t kKeyBytesAtOnce = int64_t{24} << 20;  // of keys and values that blocks at work share in L2

struct HopperArgs {
  CUtensorMap kv;  // boxes [page / 8][dims / 64][8][64] of the whole KV memory's rows
  TensorAttentionArgs attention;
  int page_shift;
  int rows_per_block;  // of the KV memory: kv_heads * 2 * page
  int rows_total;
  int num_items, num_units;  // units: items times KV heads
  int heads_at_once;         // KV heads whose units take turns
  int* counters;             // units handed out but each block's first, and blocks done
};

#if __CUDA_ARCH_FEAT_SM90_ALL

constexpr int kLoaders = 64;  // threads that load queries

// Which unit a block takes next. Of several heads whose units take turns, and the longest first.
__device__ inline Unit unit_at(const HopperArgs& args, int index) {
  const int of_heads = args.num_items * args.heads_at_once, rest = index % of_heads;
  return Unit(args.attention, rest / args.heads_at_once,
              index / of_heads * args.heads_at_once + rest % args.heads_at_once);
}

// Places in shared memory, as addresses but where they are written to by hand.
struct Rings {
  uint8_t *queries, *values;
  Unit* units;  // [kStages], without tiles when there are no more; every thread of the block says when it has read one
  uint32_t query_address, key_address, value_address;
  uint32_t unit_full, unit_empty, query_full, key_full, key_empty, value_full, value_empty;
};

// One warp: keys (part 0) or values (part 1) of all units, tiles from the last to the first: the masked ones come
// first. A page's place is looked up a tile ahead, and lanes do so side by side.
template <int kDim>
__device__ void fill_stages(const HopperArgs& args, const Rings& rings, int part) {
  const uint32_t ring = part == 0 ? rings.key_address : rings.value_address;
  const uint32_t full = part == 0 ? rings.key_full : rings.value_full;
  const uint32_t empty = part == 0 ? rings.key_empty : rings.value_empty;
  const int lane = threadIdx.x % 32, pages = kKeys >> args.page_shift, page = 1 << args.page_shift;
  Turn turn, unit_turn;
  while (true) {
    wait_barrier(rings.unit_full + 8 * unit_turn.stage, unit_turn.parity);
    const Unit unit = rings.units[unit_turn.stage];
    arrive(rings.unit_empty + 8 * unit_turn.stage);
    unit_turn.step(kStages);
    if (unit.tiles == 0) return;
    const int32_t* const table = args.attention.tables + unit.block_begin;
    const int part_rows = (unit.head * 2 + part) << args.page_shift;
    // Of the lane's page of a tile, in groups of eight rows; past the end, or before the window: zeros.
    const auto place = [&](int tile) {
      const int position = unit.begin + tile * kKeys + (lane << args.page_shift);
      const bool there = lane < pages && position < unit.end && position + page > unit.visible_begin;
      const int row = there ? table[position >> args.page_shift] * args.rows_per_block + part_rows : args.rows_total;
      return row / 8;
    };
    int next = place(unit.tiles - 1);
    for (int tile = unit.tiles - 1; tile >= 0; --tile) {
      const int group = next;
      if (tile > 0) next = place(tile - 1);
      wait_barrier(empty + 8 * turn.stage, turn.parity ^ 1);
      if (lane == 0) expect_bytes(full + 8 * turn.stage, kTileBytes<kDim>);
      __syncwarp();
      if (lane < pages) {
        copy_row_groups(ring + turn.stage * kTileBytes<kDim> + (lane << args.page_shift) / 8 * kGroupBytes<kDim>,
                        &args.kv, group, full + 8 * turn.stage);
      }
      turn.step(kStages);
    }
  }
}

// Eight values of a query, rounded.
template <class T>
__device__ inline uint4 rounded_query(const float* q) {
  const float4 a = __ldcg(reinterpret_cast<const float4*>(q)), b = __ldcg(reinterpret_cast<const float4*>(q) + 1);
  return {pair_of<T>(a.x, a.y), pair_of<T>(a.z, a.w), pair_of<T>(b.x, b.y), pair_of<T>(b.z, b.w)};
}

// Rounded queries of a unit, zeros past its count.
template <class T, int kDim>
__device__ void load_queries(const TensorAttentionArgs& args, const Unit& unit, uint8_t* target) {
  const int thread = threadIdx.x % kLoaders, chunk = thread % (kDim / 8);
  target += chunk / 8 * (kRows * 128);
#pragma unroll 4
  for (int r = thread / (kDim / 8); r < kRows; r += kLoaders / (kDim / 8)) {
    uint8_t* const to = target + r * 128 + ((chunk % 8) ^ (r & 7)) * 16;
    const int row = min(unit.first + r, unit.first + unit.count - 1);
    const int64_t at =
        (unit.token_begin + row / args.group) * args.q_stride + (unit.head * args.group + row % args.group) * kDim;
    const bool is_there = r < unit.count;
    if (args.q_half != nullptr) {
      copy_async16(shared_address(to), args.q_half + at * 2 + chunk * 8, is_there);
    } else {
      const uint4 bits = rounded_query<T>(args.q + at + chunk * 8);
      *reinterpret_cast<uint4*>(to) = is_there ? bits : uint4{};
    }
  }
  commit_copies();
  wait_copies<0>();
}

// Two warps: which units the block takes, and their queries. The first unit is the block's own, the others go to
// whichever block is ready for one.
template <class T, int kDim>
__device__ void hand_out_units(const HopperArgs& args, const Rings& rings) {
  const bool is_first = threadIdx.x % kLoaders == 0;
  Turn turn;
  for (bool is_own = true;; is_own = false) {
    wait_barrier(rings.unit_empty + 8 * turn.stage, turn.parity ^ 1);
    if (is_first) {
      const int index = static_cast<int>(is_own ? blockIdx.x : gridDim.x + atomicAdd(args.counters, 1));
      Unit unit{};
      if (index < args.num_units) unit = unit_at(args, index);
      rings.units[turn.stage] = unit;
      arrive(rings.unit_full + 8 * turn.stage);
    }
    wait_barrier(rings.unit_full + 8 * turn.stage, turn.parity);
    const Unit unit = rings.units[turn.stage];
    arrive(rings.unit_empty + 8 * turn.stage);
    if (unit.tiles == 0) break;
    load_queries<T, kDim>(args.attention, unit, rings.queries + turn.stage * kQueryBytes<kDim>);
    fence_copies();
    arrive(rings.query_full + 8 * turn.stage);
    turn.step(kStages);
  }
  if (!is_first) return;
  // The last block to be done leaves the counters as the next call wants them.
  __threadfence();
  if (atomicAdd(args.counters + 1, 1) == static_cast<int>(gridDim.x) - 1) {
    args.counters[0] = args.counters[1] = 0;
  }
}

// Of a group's 64 rows of one unit: one tile's weights times its values beside the next tile's scores and their
// softmax.
template <class T, int kDim>
__device__ void attend_unit(const HopperArgs& args, const Rings& rings, const Unit& unit, int group, int query_stage,
                            Turn& turn) {
  const TensorAttentionArgs& attention = args.attention;
  const int first_row = group * 64 + threadIdx.x % 128 / 32 * 16;
  const bool first_of_warp = threadIdx.x % 32 == 0;
  const uint32_t queries = rings.query_address + query_stage * kQueryBytes<kDim> + group * 64 * 128;
  float sums[kDim / 2] = {}, scores[64], factors[2];
  uint32_t weights[kKeys / 16][4];
  Softmax softmax(attention, unit, first_row);
  int first_key = unit.begin + (unit.tiles - 1) * kKeys;
  const int page = 1 << args.page_shift, slots = unit.end - first_key, held = (slots + page - 1) & -page;
  if (slots < held) {
    wait_barrier(rings.value_full + 8 * turn.stage, turn.parity);
    zero_values<kDim>(rings.values + turn.stage * kTileBytes<kDim>, slots, held);
    fence_copies();
    sync_groups();
  }
  wait_barrier(rings.key_full + 8 * turn.stage, turn.parity);
  wait_turn(group);
  multiply_keys<T, kDim>(scores, queries, rings.key_address + turn.stage * kTileBytes<kDim>);
  give_turn(group);
  wait_products<0>();
  pin(scores);
  if (first_of_warp) arrive(rings.key_empty + 8 * turn.stage);
  softmax.apply(attention, unit, first_row, first_key, scores, factors);
  round_weights<T>(scores, weights);
  for (int tile = unit.tiles - 1; tile > 0; --tile) {
    Turn next = turn;
    next.step(kStages);
    first_key -= kKeys;
    wait_barrier(rings.key_full + 8 * next.stage, next.parity);
    wait_turn(group);
    multiply_keys<T, kDim>(scores, queries, rings.key_address + next.stage * kTileBytes<kDim>);
    wait_barrier(rings.value_full + 8 * turn.stage, turn.parity);
    multiply_values<T, kDim>(sums, weights, rings.value_address + turn.stage * kTileBytes<kDim>);
    give_turn(group);
    wait_products<1>();
    pin(scores);
    if (first_of_warp) arrive(rings.key_empty + 8 * next.stage);
    softmax.apply(attention, unit, first_row, first_key, scores, factors);
    wait_products<0>();
    pin(sums);
    if (first_of_warp) arrive(rings.value_empty + 8 * turn.stage);
    // Mostly no peak has changed, and to multiply by one changes nothing.
    if (__any_sync(0xffffffffu, factors[0] != 1.0f || factors[1] != 1.0f)) {
#pragma unroll
      for (int i = 0; i < kDim / 2; ++i) sums[i] *= factors[i / 2 % 2];
    }
    round_weights<T>(scores, weights);
    turn = next;
  }
  arrive(rings.unit_empty + 8 * query_stage);
  wait_barrier(rings.value_full + 8 * turn.stage, turn.parity);
  multiply_values<T, kDim>(sums, weights, rings.value_address + turn.stage * kTileBytes<kDim>);
  wait_products<0>();
  pin(sums);
  if (first_of_warp) arrive(rings.value_empty + 8 * turn.stage);
  turn.step(kStages);
  write_rows<T, kDim>(attention, unit, first_row, sums, softmax.total);
}

__device__ inline void init_ring(uint32_t full, int fillers, uint32_t empty, int users) {
  for (int stage = 0; stage < kStages; ++stage) {
    init_barrier(full + 8 * stage, fillers);
    init_barrier(empty + 8 * stage, users);
  }
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <class T, int kDim>
__global__ void __launch_bounds__(kThreads, 1) hopper_attention_kernel(const __grid_constant__ HopperArgs args) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ __align__(8) uint64_t barriers[7 * kStages];
  __shared__ Unit units[kStages];
  uint8_t* const keys = shared + kStages * kQueryBytes<kDim>;
  uint8_t* const values = keys + kStages * kTileBytes<kDim>;
  const uint32_t first = shared_address(barriers);
  constexpr uint32_t kRing = 8 * kStages;
  const Rings rings{.queries = shared,
                    .values = values,
                    .units = units,
                    .query_address = shared_address(shared),
                    .key_address = shared_address(keys),
                    .value_address = shared_address(values),
                    .unit_full = first,
                    .unit_empty = first + kRing,
                    .query_full = first + 2 * kRing,
                    .key_full = first + 3 * kRing,
                    .key_empty = first + 4 * kRing,
                    .value_full = first + 5 * kRing,
                    .value_empty = first + 6 * kRing};
  if (threadIdx.x == 0) {
    constexpr int kWarps = 4 * kGroups;  // that multiply
    init_ring(rings.unit_full, 1, rings.unit_empty, kThreads);
    init_ring(rings.key_full, 1, rings.key_empty, kWarps);
    init_ring(rings.value_full, 1, rings.value_empty, kWarps);
    for (int stage = 0; stage < kStages; ++stage) init_barrier(rings.query_full + 8 * stage, kLoaders);
    fence_barriers();
  }
  __syncthreads();
  let_next_start();
  wait_for_previous();
  const int group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4;
  if (group == kGroups) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (warp < 2) {
      fill_stages<kDim>(args, rings, warp);
    } else {
      hand_out_units<T, kDim>(args, rings);
    }
    return;
  }
  asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
  if (group == 1) give_turn(group);
  Turn turn, unit_turn;
  while (true) {
    wait_barrier(rings.unit_full + 8 * unit_turn.stage, unit_turn.parity);
    const Unit unit = units[unit_turn.stage];
    if (unit.tiles == 0) break;
    wait_barrier(rings.query_full + 8 * unit_turn.stage, unit_turn.parity);
    attend_unit<T, kDim>(args, rings, unit, group, unit_turn.stage, turn);
    unit_turn.step(kStages);
  }
  if (group == 0) wait_turn(group);  // the other group's last
#endif
}

template <class T, int kDim>
void launch(const HopperArgs& args, int num_blocks, cudaStream_t stream) {
  constexpr size_t kBytes = size_t{kDim} * 2 * kStages * (kRows + 2 * kKeys);
  const auto kernel = hopper_attention_kernel<T, kDim>;
  TM_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kBytes)));
  launch_early<HopperArgs>("attention", kernel, dim3(static_cast<unsigned>(num_blocks)), dim3(kThreads), kBytes, stream,
                           true, args);
}

// The most heads, in equal parts, whose keys and values of all sequences stay in L2.
int count_heads_at_once(const TensorAttentionArgs& args, int64_t num_keys) {
  int heads = args.kv_heads;
  while (heads > 1 && (args.kv_heads % heads != 0 || num_keys * heads * args.head_dim * 4 > kKeyBytesAtOnce)) --heads;
  return heads;
}

}  // namespace

bool hopper_attention_supports(const KvLayer& kv) {
  static PerDevice is_built;
  if (!has_body(reinterpret_cast<const void*>(hopper_attention_kernel<uint16_t, 128>), is_built)) return false;
  return kv.page_size >= 8 && kv.page_size <= kKeys && kv.block_bytes % (kv.head_dim * 2) == 0;
}

void launch_hopper_attention(const TensorAttentionArgs& args, int64_t num_blocks, int num_items, int64_t num_keys,
                             int num_sms, int* counters, cudaStream_t stream) {
  const int page = 1 << args.page_shift;
  const int64_t rows_per_block = args.block_bytes / (args.head_dim * 2), rows = num_blocks * rows_per_block;
  TM_CHECK(page >= 8 && page <= kKeys && rows < (int64_t{1} << 31));
  const HopperArgs kernel{.kv = row_groups_map(args.kv, rows, args.head_dim, page, args.head_dim / 64),
                          .attention = args,
                          .page_shift = args.page_shift,
                          .rows_per_block = static_cast<int>(rows_per_block),
                          .rows_total = static_cast<int>(rows),
                          .num_items = num_items,
                          .num_units = num_items * args.kv_heads,
                          .heads_at_once = count_heads_at_once(args, num_keys),
                          .counters = counters};
  choose_launch(args, launch<uint16_t, 64>, launch<uint16_t, 128>, launch<Float16, 64>, launch<Float16, 128>)(
      kernel, std::min(kernel.num_units, num_sms), stream);
}

}  // namespace tokenmill
