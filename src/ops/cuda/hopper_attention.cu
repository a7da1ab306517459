// A block takes 128 (query, head) rows of one sequence and KV head. One warp keeps two stages of 128 keys and values
// filled by tensor copies, a page at a time; two groups of four warps have 64 rows each: scores by wgmma from
// shared memory, softmax in registers, and from there the product with the values.
//
// Shared memory holds blocks of eight rows of 64 dimensions with 128-byte swizzling, as wgmma wants them: of queries
// [half][row / 8], of keys and values [row / 8][half], so that a page is one copy. Keys have neighbours along K
// (dimensions), values along N (dimensions too, so they are taken transposed).
#include "ops/cuda/hopper_attention.h"

#include "base/check.h"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/hopper.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/tensor_map.h"
#include "ops/cuda/wgmma.cuh"

namespace tokenmill {
namespace {

constexpr int kKeys = 128;  // of a stage
constexpr int kStages = 2;
constexpr int kGroups = 2, kRows = 64 * kGroups;  // warpgroups that multiply, and their rows
constexpr int kThreads = 128 * (kGroups + 1);
static_assert(kRows == kTensorManyRows);

struct HopperArgs {
  CUtensorMap kv;  // boxes [page / 8][dims / 64][8][64] of the whole KV memory's rows
  TensorAttentionArgs attention;
  int page;
  int rows_per_block;  // of the KV memory: kv_heads * 2 * page
  int rows_total;
};

#if __CUDA_ARCH_FEAT_SM90_ALL

constexpr int kBlockBytes = 1024;  // eight rows of 64 dimensions
template <int kDim>
constexpr int kGroupBytes = kDim / 64 * kBlockBytes;  // eight keys
template <int kDim>
constexpr int kTileBytes = kKeys / 8 * kGroupBytes<kDim>;

__device__ inline void copy_page(uint32_t target, const CUtensorMap* map, int group, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %2, %2, %3}], [%4];" ::"r"(target),
      "l"(map), "r"(0), "r"(group), "r"(barrier)
      : "memory");
}

struct Unit {
  CudaAttentionItem item;
  PlanRow row;
  int head, count, past, begin, end, tiles;
  int visible_begin;  // what lies before is in no row's window, and maybe not held

  __device__ explicit Unit(const TensorAttentionArgs& args) : item(args.items[blockIdx.x]), head(blockIdx.y) {
    row = args.rows[item.row];
    count = min(kRows, row.q_len * args.group - item.first);
    past = row.kv_len - row.q_len;
    end = past + (item.first + count - 1) / args.group + 1;
    visible_begin = args.window > 0 ? max(0, past + item.first / args.group - args.window + 1) : 0;
    begin = visible_begin / kKeys * kKeys;
    tiles = (end - begin + kKeys - 1) / kKeys;
  }
};

// Tiles from the last to the first: the masked ones come first. Lanes copy pages side by side.
template <int kDim>
__device__ void fill_stages(const HopperArgs& args, const Unit& unit, uint32_t keys, uint32_t values, uint32_t key_full,
                            uint32_t value_full, uint32_t key_empty, uint32_t value_empty) {
  const int lane = threadIdx.x % 32, pages = kKeys / args.page;
  int stage = 0, parity = 1;
  const auto copy = [&](int tile, uint32_t target, uint32_t full, uint32_t empty, int part) {
    wait_barrier(empty + 8 * stage, parity);
    if (lane == 0) expect_bytes(full + 8 * stage, kTileBytes<kDim>);
    __syncwarp();
    for (int page = lane; page < pages; page += 32) {
      const int position = unit.begin + tile * kKeys + page * args.page;
      int row = args.rows_total;  // past the end, or before the window: zeros
      if (position < unit.end && position + args.page > unit.visible_begin) {
        const int block = args.attention.tables[unit.row.block_begin + position / args.page];
        row = block * args.rows_per_block + (unit.head * 2 + part) * args.page;
      }
      copy_page(target + stage * kTileBytes<kDim> + page * args.page / 8 * kGroupBytes<kDim>, &args.kv, row / 8,
                full + 8 * stage);
    }
  };
  for (int tile = unit.tiles - 1; tile >= 0; --tile) {
    copy(tile, keys, key_full, key_empty, 0);
    copy(tile, values, value_full, value_empty, 1);
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
}

// The group's 64 rows of queries, rounded, zeros past the count.
template <class T, int kDim>
__device__ void load_queries(const TensorAttentionArgs& args, const Unit& unit, uint8_t* queries, int group) {
  for (int i = threadIdx.x % 128; i < 64 * kDim / 8; i += 128) {
    const int r = group * 64 + i / (kDim / 8), chunk = i % (kDim / 8);
    uint4 bits{};
    if (r < unit.count) {
      const int query = (unit.item.first + r) / args.group;
      const int head = unit.head * args.group + (unit.item.first + r) % args.group;
      const float4* const q = reinterpret_cast<const float4*>(args.q + (unit.row.token_begin + query) * args.q_stride +
                                                              head * kDim + chunk * 8);
      const float4 a = __ldcg(q), b = __ldcg(q + 1);
      bits = {pair_of<T>(a.x, a.y), pair_of<T>(a.z, a.w), pair_of<T>(b.x, b.y), pair_of<T>(b.z, b.w)};
    }
    *reinterpret_cast<uint4*>(queries + chunk / 8 * (kRows * 128) + r * 128 + ((chunk % 8) ^ (r & 7)) * 16) = bits;
  }
}

__device__ inline void sync_group(int group) { asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory"); }

// The two groups take turns at the tensor cores, so that one's softmax runs beside the other's products.
__device__ inline void wait_turn(int group) { asm volatile("bar.sync %0, 256;" ::"r"(group + 3) : "memory"); }
__device__ inline void give_turn(int group) { asm volatile("bar.arrive %0, 256;" ::"r"(4 - group) : "memory"); }

// What the keys past the end have for values may be NaN, and NaN times a weight of zero is NaN.
template <int kDim>
__device__ void zero_values(uint8_t* values, int first) {
  for (int i = threadIdx.x % 128; i < (kKeys - first) * (kDim / 8); i += 128) {
    const int slot = first + i / (kDim / 8), chunk = i % (kDim / 8);
    *reinterpret_cast<uint4*>(values + slot / 8 * kGroupBytes<kDim> + chunk / 8 * kBlockBytes + slot % 8 * 128 +
                              chunk % 8 * 16) = uint4{};
  }
}

struct Softmax {
  float peak[2] = {kLowest, kLowest}, total[2] = {};
  int whole_below;  // keys before it are visible to all of the warp's rows

  __device__ Softmax(const TensorAttentionArgs& args, const Unit& unit, int first_row) {
    const int first_query = unit.past + (unit.item.first + first_row) / args.group;
    const bool is_whole = first_row + 16 <= unit.count && args.window == 0;
    whole_below = is_whole ? min(unit.end, first_query + 1) : 0;
  }

  // Scores to weights, in place; `factors` is what sums of earlier tiles are to be scaled by.
  __device__ void apply(const TensorAttentionArgs& args, const Unit& unit, int first_row, int first_key,
                        float (&scores)[64], float (&factors)[2]) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const bool masked = first_key + kKeys > whole_below;
    const float scale = args.softcap > 0 ? kLog2e : args.scale * kLog2e;
    if (args.softcap > 0) {
#pragma unroll
      for (float& score : scores) score = args.softcap * tanhf(score * args.scale / args.softcap);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = first_row + g + half * 8;
      if (masked) {
        // Visible are keys in (oldest, newest].
        const int position = unit.past + (unit.item.first + r) / args.group;
        const int newest = r < unit.count ? min(position, unit.end - 1) : -1;
        const int oldest = args.window > 0 ? position - args.window : -1;
#pragma unroll
        for (int n = 0; n < 16; ++n) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const int key = first_key + n * 8 + 2 * t + j;
            if (key > newest || key <= oldest) scores[n * 4 + half * 2 + j] = -INFINITY;
          }
        }
      }
      float best = -INFINITY;
#pragma unroll
      for (int n = 0; n < 16; ++n) best = fmaxf(best, fmaxf(scores[n * 4 + half * 2], scores[n * 4 + half * 2 + 1]));
      best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, 1));
      best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, 2));
      const float now = fmaxf(peak[half], best * scale);
      factors[half] = exp2_fast(peak[half] - now);
      peak[half] = now;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < 16; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float& score = scores[n * 4 + half * 2 + j];
          score = exp2_fast(fmaf(score, scale, -now));
          sum += score;
        }
      }
      total[half] = total[half] * factors[half] + sum;
    }
  }
};

template <class T, int kDim>
__device__ void multiply_keys(float (&scores)[64], uint32_t queries, uint32_t keys) {
  pin(scores);
  fence_products();
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    const uint32_t piece = k % 4 * 32;
    multiply_shared<T>(scores, descriptor(queries + k / 4 * (kRows * 128) + piece, 16, kBlockBytes),
                       descriptor(keys + k / 4 * kBlockBytes + piece, 16, kGroupBytes<kDim>), k > 0);
  }
  commit_products();
}

template <class T, int kDim>
__device__ void multiply_values(float (&sums)[kDim / 2], const uint32_t (&weights)[kKeys / 16][4], uint32_t values) {
  pin(sums);
  fence_products();
#pragma unroll
  for (int k = 0; k < kKeys / 16; ++k) {
    multiply_registers<T>(sums, weights[k],
                          descriptor(values + 2 * k * kGroupBytes<kDim>, kBlockBytes, kGroupBytes<kDim>));
  }
  commit_products();
}

// Scores as the left operand of a product.
template <class T>
__device__ inline void round_weights(const float (&scores)[64], uint32_t (&weights)[kKeys / 16][4]) {
#pragma unroll
  for (int k = 0; k < kKeys / 16; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = (2 * k + i / 2) * 4 + i % 2 * 2;
      weights[k][i] = pair_of<T>(scores[at], scores[at + 1]);
    }
  }
}

template <class T, int kDim>
__device__ void write_rows(const TensorAttentionArgs& args, const Unit& unit, int first_row,
                           const float (&sums)[kDim / 2], const float (&totals)[2]) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = totals[half];
    total += __shfl_xor_sync(0xffffffffu, total, 1);
    total += __shfl_xor_sync(0xffffffffu, total, 2);
    const float inverse = 1.0f / total;
    const int r = first_row + g + half * 8;
    if (r >= unit.count) continue;
    const int query = (unit.item.first + r) / args.group;
    const int head = unit.head * args.group + (unit.item.first + r) % args.group;
    const int64_t at = (unit.row.token_begin + query) * args.out_stride + int64_t{head} * kDim + 2 * t;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      const float a = sums[n * 4 + half * 2] * inverse, b = sums[n * 4 + half * 2 + 1] * inverse;
      if (args.out_half != nullptr) {
        *reinterpret_cast<uint32_t*>(args.out_half + at + n * 8) = pair_of<T>(a, b);
      } else {
        *reinterpret_cast<float2*>(args.out + at + n * 8) = {a, b};
      }
    }
  }
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <class T, int kDim>
__global__ void __launch_bounds__(kThreads, 1) hopper_attention_kernel(const __grid_constant__ HopperArgs args) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ __align__(8) uint64_t barriers[4 * kStages];
  uint8_t* const keys = shared + kDim / 64 * kRows * 128;
  uint8_t* const values = keys + kStages * kTileBytes<kDim>;
  const uint32_t key_full = shared_address(barriers), value_full = key_full + 8 * kStages;
  const uint32_t key_empty = value_full + 8 * kStages, value_empty = key_empty + 8 * kStages;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      init_barrier(key_full + 8 * stage, 1);
      init_barrier(value_full + 8 * stage, 1);
      init_barrier(key_empty + 8 * stage, 4 * kGroups);
      init_barrier(value_empty + 8 * stage, 4 * kGroups);
    }
    fence_barriers();
  }
  __syncthreads();
  let_next_start();
  wait_for_previous();
  const TensorAttentionArgs& attention = args.attention;
  const Unit unit(attention);
  if (threadIdx.x >= 128 * kGroups) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x >= 128 * kGroups + 32) return;
    fill_stages<kDim>(args, unit, shared_address(keys), shared_address(values), key_full, value_full, key_empty,
                      value_empty);
    return;
  }
  asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
  const int group = threadIdx.x / 128, first_row = group * 64 + threadIdx.x % 128 / 32 * 16;
  load_queries<T, kDim>(attention, unit, shared, group);
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  sync_group(group);

  const uint32_t query_address = shared_address(shared) + group * 64 * 128;
  const uint32_t key_address = shared_address(keys), value_address = shared_address(values);
  float sums[kDim / 2] = {}, scores[64], factors[2];
  uint32_t weights[kKeys / 16][4];
  Softmax softmax(attention, unit, first_row);
  int stage = 0, parity = 0;
  const bool first_of_warp = threadIdx.x % 32 == 0;
  int first_key = unit.begin + (unit.tiles - 1) * kKeys;
  if (first_key + kKeys > unit.end) {
    wait_barrier(value_full, 0);
    zero_values<kDim>(values, unit.end - first_key);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    sync_group(group);
  }
  wait_barrier(key_full, 0);
  if (group == 1) give_turn(group);
  wait_turn(group);
  multiply_keys<T, kDim>(scores, query_address, key_address);
  if (group == 0 || unit.tiles > 1) give_turn(group);  // nobody waits for the last turn's end
  wait_products<0>();
  pin(scores);
  if (first_of_warp) arrive(key_empty);
  softmax.apply(attention, unit, first_row, first_key, scores, factors);
  round_weights<T>(scores, weights);
  // One tile's weights times its values beside the next tile's scores and their softmax.
  for (int tile = unit.tiles - 1; tile > 0; --tile) {
    const int next_stage = (stage + 1) % kStages, next_parity = next_stage == 0 ? parity ^ 1 : parity;
    first_key -= kKeys;
    wait_barrier(key_full + 8 * next_stage, next_parity);
    wait_turn(group);
    multiply_keys<T, kDim>(scores, query_address, key_address + next_stage * kTileBytes<kDim>);
    wait_barrier(value_full + 8 * stage, parity);
    multiply_values<T, kDim>(sums, weights, value_address + stage * kTileBytes<kDim>);
    if (group == 0 || tile > 1) give_turn(group);
    wait_products<1>();
    pin(scores);
    if (first_of_warp) arrive(key_empty + 8 * next_stage);
    softmax.apply(attention, unit, first_row, first_key, scores, factors);
    wait_products<0>();
    pin(sums);
    if (first_of_warp) arrive(value_empty + 8 * stage);
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) sums[i] *= factors[i / 2 % 2];
    round_weights<T>(scores, weights);
    stage = next_stage;
    parity = next_parity;
  }
  wait_barrier(value_full + 8 * stage, parity);
  multiply_values<T, kDim>(sums, weights, value_address + stage * kTileBytes<kDim>);
  wait_products<0>();
  pin(sums);
  write_rows<T, kDim>(attention, unit, first_row, sums, softmax.total);
#endif
}

template <class T, int kDim>
void launch(const HopperArgs& args, int num_items, cudaStream_t stream) {
  constexpr size_t kBytes = size_t{kDim} * 2 * (kRows + 2 * kStages * kKeys);
  const auto kernel = hopper_attention_kernel<T, kDim>;
  TM_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kBytes)));
  const dim3 grid(static_cast<unsigned>(num_items), static_cast<unsigned>(args.attention.kv_heads));
  launch_early<HopperArgs>("attention", kernel, grid, dim3(kThreads), kBytes, stream, true, args);
}

}  // namespace

bool hopper_attention_supports(const KvLayer& kv) {
  static const bool is_built = has_body(reinterpret_cast<const void*>(hopper_attention_kernel<uint16_t, 128>));
  if (!is_built) return false;
  return kv.page_size >= 8 && kv.page_size <= kKeys && kv.block_bytes % (kv.head_dim * 2) == 0;
}

void launch_hopper_attention(const TensorAttentionArgs& args, int64_t num_blocks, int num_items, cudaStream_t stream) {
  const int page = 1 << args.page_shift;
  const int64_t rows_per_block = args.block_bytes / (args.head_dim * 2), rows = num_blocks * rows_per_block;
  TM_CHECK(page >= 8 && page <= kKeys && rows < (int64_t{1} << 31));
  HopperArgs kernel{.kv = row_groups_map(args.kv, rows, args.head_dim, page, args.head_dim / 64),
                    .attention = args,
                    .page = page,
                    .rows_per_block = static_cast<int>(rows_per_block),
                    .rows_total = static_cast<int>(rows)};
  TM_CHECK(args.head_dim == 64 || args.head_dim == 128);
  const bool is_f16 = args.dtype == DType::kF16;
  const auto run = args.head_dim == 64 ? is_f16 ? launch<Float16, 64> : launch<uint16_t, 64>
                   : is_f16 ? launch<Float16, 128>
                                       : launch<uint16_t, 128>;
  run(kernel, num_items, stream);
}

}  // namespace tokenmill
