// One block a multiprocessor has all K of a tile of weight rows (gated: as many of gate and of up) and all rows of
// input; tiles are as wide as lets one round of blocks take all of them, where that can be. One warp keeps a ring of
// stages filled by tensor copies, four warps multiply: the input's rows as the 64-row operand of wgmma, the weights as
// the other, so that a lane has gate and up of the same outputs.
//
// The input is read again for every tile, from L2: at 64 rows of input and 32 weight rows twice the bytes of the
// weights, more than L2 gives. So the blocks of a cluster, which have neighbouring tiles, fetch a part of it each, for
// all of them; a stage is filled anew when all of them have done with it.
#include "ops/cuda/tens_linear.h"

#include <algorithm>
#include <span>

#include "base/check.h"
#include "ops/cuda/activation.cuh"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/hopper.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/tensor_map.h"
#include "ops/cuda/wgmma.cuh"

namespace tokenmill {
namespace {

// On an H100 clusters of four leave 12 of its 132 multiprocessors without a block, those of two none. Alone the
// products are faster with two (64 rows, us: output product 15.6, of 19.7 with four; down 44.5, of 55.3), whole steps
// are with four, by 0.1 to 0.2 ms: wider tiles leave room for the next kernel's blocks, which fetch weights early.
constexpr int kCluster = 4;
constexpr int kStagesMax = 8, kThreads = 128;  // that multiply
// As in stream_linear.cu: one block a multiprocessor, and room for one of attention's beside it.
constexpr size_t kSharedBytes = size_t{154} << 10;

struct TensArgs {
  CUtensorMap weight, second, x;
  const float *bias, *second_bias;
  int k, n, rows;
  bool add;
  Activation activation;
  float* out;
  uint16_t* out_half;
  int64_t out_stride;
};

// kTokens rows of input, kCols weight rows (gated: of each), kPieces times 64 of K a stage.
template <class T, int kTokensIn, int kColsIn, bool kGatedIn>
struct Shape {
  using Value = T;  // of weights and input
  static constexpr int kTokens = kTokensIn, kCols = kColsIn;
  static constexpr bool kGated = kGatedIn;
  static constexpr int kPieces = kGated && kCols > 64 ? 1 : 2;
  static constexpr int kInputBytes = kTokens * kPieces * 128;  // [kPieces][kTokens][64]
  static constexpr int kWeightBytes = kCols * kPieces * 128;   // [kCols / 8][kPieces][8][64]
  static constexpr int kStageBytes = kInputBytes + kWeightBytes * (kGated ? 2 : 1);
  static constexpr int kStages = std::min<int>(kStagesMax, kSharedBytes / kStageBytes);
  static_assert(kStages >= 3 && kInputBytes % 1024 == 0 && kWeightBytes % 1024 == 0);
  // wgmma reads 64 rows of input whatever their number: the last stage's must end inside.
  static_assert(kStageBytes - kInputBytes >= (64 - kTokens) * 128);
};

#if __CUDA_ARCH_FEAT_SM90_ALL

// The stages of the block's tiles, in order.
template <class S>
struct Filler {
  const TensArgs& args;
  uint32_t ring, full;
  int rank, stages_per_tile;
  uint64_t once = evict_first_policy(), often = evict_last_policy();

  __device__ void weights(int tile, int i, int stage) const {
    const uint32_t target = ring + stage * S::kStageBytes + S::kInputBytes, barrier = full + 8 * stage;
    expect_bytes(barrier, S::kStageBytes);
    copy_row_groups(target, &args.weight, i * S::kPieces, tile * (S::kCols / 8), barrier, once);
    if constexpr (S::kGated) {
      copy_row_groups(target + S::kWeightBytes, &args.second, i * S::kPieces, tile * (S::kCols / 8), barrier, once);
    }
  }
  __device__ void input(int i, int stage) const {
    constexpr int kOwn = S::kTokens / kCluster;
#pragma unroll
    for (int p = 0; p < S::kPieces; ++p) {
      copy_to_all<kCluster>(ring + stage * S::kStageBytes + (p * S::kTokens + rank * kOwn) * 128, &args.x, rank * kOwn,
                            i * S::kPieces + p, full + 8 * stage, often);
    }
  }
};

// Sums of the lane's outputs, with bias, in place where asked: rows g and g + 8 of the warp's, two neighbouring columns
// for every eight of the tile.
template <class S>
__device__ void write_tile(const TensArgs& args, int tile, const float (&first)[S::kCols / 2],
                           const float (&second)[S::kGated ? S::kCols / 2 : 8]) {
  using T = typename S::Value;
  const int row0 = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, col0 = tile * S::kCols + threadIdx.x % 4 * 2;
#pragma unroll
  for (int n = 0; n < S::kCols / 8; ++n) {
    const int col = col0 + n * 8;
    if (col >= args.n) continue;
    const float2 bias = args.bias != nullptr ? *reinterpret_cast<const float2*>(args.bias + col) : float2{};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = row0 + half * 8;
      if (row >= args.rows) continue;
      float2 v = {first[n * 4 + half * 2], first[n * 4 + half * 2 + 1]};
      const int64_t at = row * args.out_stride + col;
      if constexpr (S::kGated) {
        float2 up = {second[n * 4 + half * 2], second[n * 4 + half * 2 + 1]};
        if (args.out_half != nullptr) {  // as products of more rows are
          v = {rounded_to<T>(v.x), rounded_to<T>(v.y)};
          up = {rounded_to<T>(up.x), rounded_to<T>(up.y)};
        }
        if (args.second_bias != nullptr) {
          up = {up.x + args.second_bias[col], up.y + args.second_bias[col + 1]};
        }
        v = {activate(args.activation, v.x + bias.x) * up.x, activate(args.activation, v.y + bias.y) * up.y};
        if (args.out_half != nullptr) {
          *reinterpret_cast<uint32_t*>(args.out_half + at) = pair_of<T>(v.x, v.y);
          continue;
        }
      } else {
        v = {v.x + bias.x, v.y + bias.y};
        if (args.add) {
          const float2 before = __ldcg(reinterpret_cast<const float2*>(args.out + at));
          v = {before.x + v.x, before.y + v.y};
        }
      }
      *reinterpret_cast<float2*>(args.out + at) = v;
    }
  }
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <class S>
__global__ void __launch_bounds__(kThreads + 32, 1) tens_kernel(const __grid_constant__ TensArgs args) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ __align__(8) uint64_t barriers[2 * kStagesMax];
  const uint32_t ring = shared_address(shared), full = shared_address(barriers), empty = full + 8 * kStagesMax;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int rank = blockIdx.x % kCluster, step = gridDim.x;
  const int tiles = (args.n + S::kCols - 1) / S::kCols;
  const int stages_per_tile = (args.k / 64 + S::kPieces - 1) / S::kPieces;
  let_next_start();
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < S::kStages; ++stage) {
      init_barrier(full + 8 * stage, 1);
      init_barrier(empty + 8 * stage, kCluster * kThreads / 32);
    }
    fence_barriers();
  }
  __syncthreads();
  // All blocks of a cluster have as many tiles; one past the end is zeros.
  const int first_tile = blockIdx.x, end_tile = (tiles + kCluster - 1) / kCluster * kCluster;
  if (warp == kThreads / 32) {
    const Filler<S> fill{args, ring, full, rank, stages_per_tile};
    const int own = first_tile < end_tile ? (end_tile - 1 - first_tile) / step + 1 : 0;
    const int total = own * stages_per_tile, ahead = min(total, S::kStages);
    if (lane == 0) {
      for (int i = 0; i < ahead; ++i) fill.weights(first_tile + i / stages_per_tile * step, i % stages_per_tile, i);
    }
    __syncwarp();
    meet_cluster();  // others' barriers are there
    if (lane == 0) {
      wait_for_previous();
      for (int i = 0; i < ahead; ++i) fill.input(i % stages_per_tile, i);
      int stage = 0, parity = 0, tile = first_tile + ahead / stages_per_tile * step, part = ahead % stages_per_tile;
      for (int i = ahead; i < total; ++i) {
        wait_barrier(empty + 8 * stage, parity);
        fill.weights(tile, part, stage);
        fill.input(part, stage);
        if (++part == stages_per_tile) {
          part = 0;
          tile += step;
        }
        if (++stage == S::kStages) {
          stage = 0;
          parity ^= 1;
        }
      }
    }
    __syncwarp();
  } else {
    meet_cluster();
    wait_for_previous();
    int stage = 0, parity = 0;
    for (int tile = first_tile; tile < end_tile; tile += step) {
      float first[S::kCols / 2] = {}, second[S::kGated ? S::kCols / 2 : 8] = {};
      int before = 0;
      for (int i = 0; i < stages_per_tile; ++i) {
        wait_barrier(full + 8 * stage, parity);
        const uint32_t input = ring + stage * S::kStageBytes, weights = input + S::kInputBytes;
        pin(first);
        if constexpr (S::kGated) pin(second);
        fence_products();
#pragma unroll
        for (int p = 0; p < S::kPieces; ++p) {  // beyond K's end both are zeros
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            const uint64_t x = descriptor(input + p * S::kTokens * 128 + k * 32, 16, 1024);
            multiply_shared<typename S::Value>(first, x, descriptor(weights + p * 1024 + k * 32, 16, S::kPieces * 1024),
                                               1);
            if constexpr (S::kGated) {
              const uint32_t up = weights + S::kWeightBytes + p * 1024 + k * 32;
              multiply_shared<typename S::Value>(second, x, descriptor(up, 16, S::kPieces * 1024), 1);
            }
          }
        }
        commit_products();
        wait_products<1>();
        if (i > 0 && lane < kCluster) hand_back_there(empty + 8 * before, lane);
        before = stage;
        if (++stage == S::kStages) {
          stage = 0;
          parity ^= 1;
        }
      }
      wait_products<0>();
      pin(first);
      if constexpr (S::kGated) pin(second);
      if (lane < kCluster) hand_back_there(empty + 8 * before, lane);
      write_tile<S>(args, tile, first, second);
    }
  }
  meet_cluster();  // others may still copy to this block, or arrive at its barriers
#endif
}

// Blocks that the device holds at a time; depends on how its multiprocessors hang together.
int blocks_max(int num_sms) {
  using S = Shape<uint16_t, 64, 32, false>;  // all shapes are one block a multiprocessor
  static PerDevice known;
  return known.get([num_sms] {
    constexpr int kBytes = S::kStages * S::kStageBytes;
    TM_CUDA(cudaFuncSetAttribute(tens_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
    const auto blocks = static_cast<unsigned>(num_sms / kCluster * kCluster);
    const LaunchConfig launch(blocks, kThreads + 32, kBytes, nullptr, true, kCluster);
    int clusters = 0;
    TM_CUDA(cudaOccupancyMaxActiveClusters(&clusters, tens_kernel<S>, &launch.config));
    return std::clamp(clusters, 1, num_sms / kCluster) * kCluster;
  });
}

template <class S>
void launch(const StreamProduct& product, int num_sms, cudaStream_t stream) {
  TensArgs args{};
  args.weight = row_groups_map(product.weight, product.n, product.k, S::kCols, S::kPieces);
  if (S::kGated) args.second = row_groups_map(product.second, product.n, product.k, S::kCols, S::kPieces);
  args.x = columns_map(product.x, product.rows, product.k, product.x_stride, S::kTokens / kCluster, 1);
  take_over(product, args);
  const auto kernel = tens_kernel<S>;
  constexpr int kBytes = S::kStages * S::kStageBytes;
  TM_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const int tiles = (args.n + S::kCols - 1) / S::kCols;
  const int blocks = std::min((tiles + kCluster - 1) / kCluster * kCluster, blocks_max(num_sms));
  const LaunchConfig launch(static_cast<unsigned>(blocks), kThreads + 32, kBytes, stream, true, kCluster);
  check_cuda(cudaLaunchKernelEx(&launch.config, kernel, args), "tens_linear");
}

// What a tile's round takes: its weights, and the input at the rate of L2.
double cost(const StreamProduct& product, int cols, int tokens, int blocks) {
  const int64_t tiles = (product.n + cols - 1) / cols, rounds = (tiles + blocks - 1) / blocks;
  const int rows = product.second != nullptr ? 2 * cols : cols;
  return static_cast<double>(rounds) * (rows + 0.25 * tokens);
}

template <class T, int kTokens>
void launch_best(const StreamProduct& product, int num_sms, cudaStream_t stream) {
  using Launch = void (*)(const StreamProduct&, int, cudaStream_t);
  struct Candidate {
    int cols;
    Launch launch;
  };
  static constexpr Candidate kPlain[] = {{32, launch<Shape<T, kTokens, 32, false>>},
                                         {48, launch<Shape<T, kTokens, 48, false>>},
                                         {64, launch<Shape<T, kTokens, 64, false>>},
                                         {96, launch<Shape<T, kTokens, 96, false>>},
                                         {128, launch<Shape<T, kTokens, 128, false>>}};
  static constexpr Candidate kGated[] = {{32, launch<Shape<T, kTokens, 32, true>>},
                                         {48, launch<Shape<T, kTokens, 48, true>>},
                                         {64, launch<Shape<T, kTokens, 64, true>>},
                                         {112, launch<Shape<T, kTokens, 112, true>>}};
  const std::span<const Candidate> candidates =
      product.second != nullptr ? std::span<const Candidate>(kGated) : std::span<const Candidate>(kPlain);
  const int blocks = blocks_max(num_sms);
  const auto& best = *std::ranges::min_element(
      candidates, {}, [&](const Candidate& one) { return cost(product, one.cols, kTokens, blocks); });
  best.launch(product, num_sms, stream);
}

}  // namespace

bool can_take_tens(const StreamProduct& product) {
  static PerDevice is_built;
  if (!has_body(reinterpret_cast<const void*>(tens_kernel<Shape<uint16_t, 64, 32, false>>), is_built)) return false;
  if (product.rows > kTensRowsMax || product.x_float || product.norm != nullptr) return false;
  const void* const out = product.out != nullptr ? static_cast<const void*>(product.out) : product.out_half;
  const uintptr_t alignment = product.out != nullptr ? 8 : 4;
  return product.k % 64 == 0 && product.n % 8 == 0 && product.n < (int64_t{1} << 31) && product.x_stride % 8 == 0 &&
         reinterpret_cast<uintptr_t>(product.x) % 16 == 0 && product.out_stride % 2 == 0 &&
         reinterpret_cast<uintptr_t>(out) % alignment == 0 && reinterpret_cast<uintptr_t>(product.bias) % 8 == 0;
}

void launch_tens_product(const StreamProduct& product, int num_sms, cudaStream_t stream) {
  TM_CHECK(product.rows >= 1 && can_take_tens(product));
  const bool is_f16 = product.dtype == DType::kF16;
  const auto launch = product.rows <= 32 ? is_f16 ? launch_best<Float16, 32> : launch_best<uint16_t, 32>
                      : is_f16 ? launch_best<Float16, 64>
                                         : launch_best<uint16_t, 64>;
  launch(product, num_sms, stream);
}

}  // namespace tokenmill
