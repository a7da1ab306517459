// Rows of many queries: each of the eight warps has 16 (query, head) rows of its own and takes all keys of a tile.
#include "base/check.h"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/tensor_attention.h"
#include "ops/cuda/tensor_attention_core.cuh"

namespace tokenmill {
namespace {

constexpr int kWarps = kTensorManyRows / 16;

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

template <class T, int kDim>
__global__ void __launch_bounds__(32 * kWarps, 1) many_rows_kernel(const TensorAttentionArgs args) {
  extern __shared__ __align__(128) uint8_t shared[];
  let_next_start();
  const Work<T, kDim, 32 * kWarps> work(args, shared_address(shared + kTensorManyRows * kDim * 2), kTensorManyRows);
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

template <class T, int kDim>
void launch(const TensorAttentionArgs& args, int num_items, cudaStream_t stream, bool early) {
  const size_t bytes = kTensorManyRows * kDim * 2 + static_cast<size_t>(args.stages) * kStageBytes<kDim>;
  launch_attention(many_rows_kernel<T, kDim>, kWarps, bytes, args, num_items, stream, early);
}

}  // namespace

void launch_many_row_attention(const TensorAttentionArgs& args, int num_items, cudaStream_t stream, bool early) {
  choose_launch(args, launch<uint16_t, 64>, launch<uint16_t, 128>, launch<Float16, 64>, launch<Float16, 128>)(
      args, num_items, stream, early);
}

}  // namespace tokenmill
