// What the multiplying warps of hopper_attention.cu do with a unit of rows and its tiles of keys: products by wgmma,
// softmax in registers, rows written.
//
// Shared memory holds blocks of eight rows of 64 dimensions with 128-byte swizzling, as wgmma wants them: of queries
// [half][row / 8], of keys and values [row / 8][half], so that a page is one copy. Keys have neighbours along K
// (dimensions), values along N (dimensions too, so they are taken transposed).
#pragma once

#include "ops/cuda/device_math.cuh"
#include "ops/cuda/hopper_attention.h"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/tensor_attention.h"
#include "ops/cuda/wgmma.cuh"

namespace tokenmill {

constexpr int kKeys = 128;                        // of a stage
constexpr int kGroups = 2, kRows = 64 * kGroups;  // warpgroups that multiply, and their rows
static_assert(kRows == kTensorManyRows);

#if __CUDA_ARCH_FEAT_SM90_ALL

template <int kDim>
constexpr int kTileBytes = kKeys / 8 * kGroupBytes<kDim>;
template <int kDim>
constexpr int kQueryBytes = kDim / 64 * kRows * 128;

// Up to kRows (query, head) rows of one sequence and KV head, and the keys they see.
struct Unit {
  int first, count, token_begin, block_begin, head, past, begin, end, tiles;
  int visible_begin;  // what lies before is in no row's window, and maybe not held

  Unit() = default;
  __device__ Unit(const TensorAttentionArgs& args, int item_index, int kv_head) : head(kv_head) {
    const CudaAttentionItem item = args.items[item_index];
    const PlanRow row = args.rows[item.row];
    first = item.first;
    count = min(kRows, row.q_len * args.group - first);
    token_begin = row.token_begin;
    block_begin = row.block_begin;
    past = row.kv_len - row.q_len;
    end = past + (first + count - 1) / args.group + 1;
    visible_begin = args.window > 0 ? max(0, past + first / args.group - args.window + 1) : 0;
    begin = visible_begin / kKeys * kKeys;
    tiles = (end - begin + kKeys - 1) / kKeys;
  }
};

__device__ inline void sync_groups() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

// The two groups take turns at the tensor cores, so that one's softmax runs beside the other's products.
__device__ inline void wait_turn(int group) { asm volatile("bar.sync %0, 256;" ::"r"(group + 2) : "memory"); }
__device__ inline void give_turn(int group) { asm volatile("bar.arrive %0, 256;" ::"r"(3 - group) : "memory"); }

// What a page has past the end may be NaN, and NaN times a weight of zero is NaN. Slots [first, end) of a tile, by both
// groups together.
template <int kDim>
__device__ void zero_values(uint8_t* values, int first, int end) {
  for (int i = threadIdx.x; i < (end - first) * (kDim / 8); i += 128 * kGroups) {
    const int slot = first + i / (kDim / 8), chunk = i % (kDim / 8);
    *reinterpret_cast<uint4*>(values + slot / 8 * kGroupBytes<kDim> + chunk / 8 * kBlockBytes + slot % 8 * 128 +
                              chunk % 8 * 16) = uint4{};
  }
}

struct Softmax {
  float peak[2] = {kLowest, kLowest}, total[2] = {};
  int whole_below;  // keys before it are visible to all of the warp's rows

  __device__ Softmax(const TensorAttentionArgs& args, const Unit& unit, int first_row) {
    const int first_query = unit.past + (unit.first + first_row) / args.group;
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
        const int position = unit.past + (unit.first + r) / args.group;
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
    const int query = (unit.first + r) / args.group;
    const int head = unit.head * args.group + (unit.first + r) % args.group;
    const int64_t at = (unit.token_begin + query) * args.out_stride + int64_t{head} * kDim + 2 * t;
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

}  // namespace tokenmill
