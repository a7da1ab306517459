// A block a multiprocessor has all K of tiles of weight rows (gated: as many of gate and of up) and all rows of input;
// tiles are as wide as keeps all blocks at work to the end. One thread keeps a ring of stages filled with weights,
// another with the input's pieces, by tensor copies; four warps multiply: the input's rows as the 64-row operand of
// wgmma, the weights as the other, so that a lane has gate and up of the same outputs.
//
// The input is read again for every tile, from L2. So the blocks of a cluster, which have neighbouring tiles, fetch a
// part of it each, for all of them: a stage's place for the input is filled anew when all of them have done with it,
// that for weights as soon as this block has. Where a tile is narrow beside the input split_linear.cu is for it.
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

// Of the 132 multiprocessors of an H100 or H200 clusters of four leave 12 without a block, those of two none; whole
// steps were 0.1 to 0.2 ms faster with four on an H100.
constexpr int kCluster = 4;
constexpr int kStagesMax = 16, kThreads = 128;  // that multiply
constexpr int kBlockThreads = kThreads + 64;    // a warp for weights, one for the input
constexpr int kPieces = 2;                      // times 64 of K a stage
// Nearly all that a multiprocessor has: with room for a block of attention's beside this one it was 2 to 4 % slower.
constexpr int kSharedBytes = 220 << 10;
// Stages of weights that a block has under way, as in stream_linear.cu.
constexpr int kFlight = 3;

struct TensArgs {
  CUtensorMap weight, second, x;
  const float *bias, *second_bias;
  int k, n, rows;
  bool add;
  Activation activation;
  float* out;
  uint16_t* out_half;
  int64_t out_stride;
  int tokens, own_tokens;  // rows of input in a stage, and those that a block fetches for its cluster
  int stages, stage_bytes;
  int flight;  // stages of weights under way at most
};

// kCols weight rows (gated: of each).
template <class T, int kColsIn, bool kGatedIn>
struct Shape {
  using Value = T;  // of weights and input
  static constexpr int kCols = kColsIn;
  static constexpr bool kGated = kGatedIn;
  static constexpr int kMatrixBytes = kCols * kPieces * 128;  // [kCols / 8][kPieces][8][64]
  static constexpr int kWeightBytes = kMatrixBytes * (kGated ? 2 : 1);
  // wgmma reads 64 rows of input whatever their number: what follows the fewest is read too.
  static_assert(kMatrixBytes % 1024 == 0 && kWeightBytes >= (64 - 8) * 128);
};

#if __CUDA_ARCH_FEAT_SM90_ALL

// A lane's sums of a tile.
template <class S>
constexpr int kSums = S::kCols / 2 * (S::kGated ? 2 : 1);

// Of a stage's weights, its input, its being free in this block and in the whole cluster.
struct Barriers {
  uint32_t full, came, empty, all_empty;
};

// A block's stages in their order: those of its tiles. All blocks of a cluster have as many tiles; one past the end is
// zeros.
struct Walk {
  int end_tile, stages_per_tile, total;
  __device__ Walk(int tiles, int stages_per_tile)
      : end_tile((tiles + kCluster - 1) / kCluster * kCluster), stages_per_tile(stages_per_tile) {
    const int own = static_cast<int>(blockIdx.x) < end_tile ? (end_tile - 1 - blockIdx.x) / gridDim.x + 1 : 0;
    total = own * stages_per_tile;
  }
};

template <class S>
__device__ void fill_weights(const TensArgs& args, uint32_t ring, const Barriers& barriers, const Walk& walk) {
  const uint64_t once = evict_first_policy();
  Turn turn, arriving;
  int group = blockIdx.x * (S::kCols / 8), part = 0;
  for (int i = 0; i < walk.total; ++i) {
    if (i >= args.stages) wait_barrier(barriers.empty + 8 * turn.stage, turn.parity ^ 1);
    if (i >= args.flight) {
      wait_barrier(barriers.full + 8 * arriving.stage, arriving.parity);
      arriving.step(args.stages);
    }
    const uint32_t barrier = barriers.full + 8 * turn.stage;
    const uint32_t target = ring + (turn.stage + 1) * args.stage_bytes - S::kWeightBytes;
    expect_bytes(barrier, S::kWeightBytes);
    copy_row_groups(target, &args.weight, part * kPieces, group, barrier, once);
    if constexpr (S::kGated) {
      copy_row_groups(target + S::kMatrixBytes, &args.second, part * kPieces, group, barrier, once);
    }
    turn.step(args.stages);
    if (++part == walk.stages_per_tile) {
      part = 0;
      group += gridDim.x * (S::kCols / 8);
    }
  }
}

template <class S>
__device__ void fill_inputs(const TensArgs& args, uint32_t ring, const Barriers& barriers, const Walk& walk) {
  const uint64_t often = evict_last_policy();
  const int first = blockIdx.x % kCluster * args.own_tokens;
  wait_for_previous();
  Turn turn;
  int part = 0;
  for (int i = 0; i < walk.total; ++i) {
    if (i >= args.stages) wait_barrier(barriers.all_empty + 8 * turn.stage, turn.parity ^ 1);
    const uint32_t barrier = barriers.came + 8 * turn.stage;
    expect_bytes(barrier, args.tokens * kPieces * 128);
    if (first < args.tokens) {
#pragma unroll
      for (int p = 0; p < kPieces; ++p) {
        copy_to_all<kCluster>(ring + turn.stage * args.stage_bytes + (p * args.tokens + first) * 128, &args.x, first,
                              part * kPieces + p, barrier, often);
      }
    }
    turn.step(args.stages);
    if (++part == walk.stages_per_tile) part = 0;
  }
}

// A tile's sums. Of a gated one gate's come first; up's weights lie behind gate's, as if they were more columns.
template <class S>
__device__ void multiply_tile(const TensArgs& args, float (&sums)[kSums<S>], int stages_per_tile, uint32_t ring,
                              const Barriers& barriers, Turn& turn) {
  const int lane = threadIdx.x % 32;
  const auto hand_back = [&](int stage) {
    if (lane == 0) arrive(barriers.empty + 8 * stage);
    if (lane < kCluster) hand_back_there(barriers.all_empty + 8 * stage, lane);
  };
#pragma unroll
  for (float& sum : sums) sum = 0;
  pin(sums);
  int before = 0;
  for (int i = 0; i < stages_per_tile; ++i) {
    wait_barrier(barriers.full + 8 * turn.stage, turn.parity);
    wait_barrier(barriers.came + 8 * turn.stage, turn.parity);
    const uint32_t input = ring + turn.stage * args.stage_bytes;
    const uint32_t weights = input + args.stage_bytes - S::kWeightBytes;
    pin(sums);
    fence_products();
    multiply_pieces<typename S::Value, kPieces>(sums, {input, args.tokens * 128, 1024},
                                                {weights, 1024, kPieces * 1024});
    commit_products();
    wait_products<1>();
    if (i > 0) hand_back(before);
    before = turn.stage;
    turn.step(args.stages);
  }
  wait_products<0>();
  pin(sums);
  hand_back(before);
}

// Sums of the lane's outputs, with bias, in place where asked: rows g and g + 8 of the warp's, two neighbouring columns
// for every eight of the tile.
template <class S>
__device__ void write_tile(const TensArgs& args, int tile, const float (&sums)[kSums<S>]) {
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
      float2 v = {sums[n * 4 + half * 2], sums[n * 4 + half * 2 + 1]};
      const int64_t at = row * args.out_stride + col;
      if constexpr (S::kGated) {
        constexpr int kUp = S::kCols / 2;
        float2 up = {sums[kUp + n * 4 + half * 2], sums[kUp + n * 4 + half * 2 + 1]};
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
__global__ void __launch_bounds__(kBlockThreads, 1) tens_kernel(const __grid_constant__ TensArgs args) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ __align__(8) uint64_t barrier_words[4 * kStagesMax];
  const uint32_t ring = shared_address(shared), words = shared_address(barrier_words);
  const Barriers barriers{words, words + 8 * kStagesMax, words + 16 * kStagesMax, words + 24 * kStagesMax};
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Walk walk((args.n + S::kCols - 1) / S::kCols, (args.k / 64 + kPieces - 1) / kPieces);
  let_next_start();
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < args.stages; ++stage) {
      init_barrier(barriers.full + 8 * stage, 1);
      init_barrier(barriers.came + 8 * stage, 1);
      init_barrier(barriers.empty + 8 * stage, kThreads / 32);
      init_barrier(barriers.all_empty + 8 * stage, kCluster * kThreads / 32);
    }
    fence_barriers();
  }
  __syncthreads();
  arrive_in_cluster();
  if (warp == kThreads / 32) {
    if (lane == 0) fill_weights<S>(args, ring, barriers, walk);
    __syncwarp();
    wait_for_cluster();
  } else if (warp > kThreads / 32) {
    wait_for_cluster();  // the others' barriers are there
    if (lane == 0) fill_inputs<S>(args, ring, barriers, walk);
    __syncwarp();
  } else {
    wait_for_cluster();
    wait_for_previous();
    Turn turn;
    for (int tile = blockIdx.x; tile < walk.end_tile; tile += gridDim.x) {
      float sums[kSums<S>];
      multiply_tile<S>(args, sums, walk.stages_per_tile, ring, barriers, turn);
      write_tile<S>(args, tile, sums);
    }
  }
  meet_cluster();  // others may still copy to this block, or arrive at its barriers
#endif
}

// Blocks that the device holds at a time; depends on how its multiprocessors hang together.
int blocks_max(int num_sms) {
  using S = Shape<uint16_t, 32, false>;  // all shapes are one block a multiprocessor
  static PerDevice known;
  return known.get([num_sms] {
    TM_CUDA(cudaFuncSetAttribute(tens_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
    const auto blocks = static_cast<unsigned>(num_sms / kCluster * kCluster);
    const LaunchConfig launch(blocks, kBlockThreads, kSharedBytes, nullptr, true, kCluster);
    int clusters = 0;
    TM_CUDA(cudaOccupancyMaxActiveClusters(&clusters, tens_kernel<S>, &launch.config));
    return std::clamp(clusters, 1, num_sms / kCluster) * kCluster;
  });
}

template <class S>
void launch(const StreamProduct& product, int num_sms, cudaStream_t stream) {
  TensArgs args{};
  // Copies of eight rows, or of sixteen: swizzling has a period of eight.
  args.own_tokens = product.rows <= 8 * kCluster ? 8 : 16;
  args.tokens = (product.rows + args.own_tokens - 1) / args.own_tokens * args.own_tokens;
  args.weight = row_groups_map(product.weight, product.n, product.k, S::kCols, kPieces);
  if (S::kGated) args.second = row_groups_map(product.second, product.n, product.k, S::kCols, kPieces);
  args.x = columns_map(product.x, product.rows, product.k, product.x_stride, args.own_tokens, 1);
  take_over(product, args);
  args.stage_bytes = S::kWeightBytes + args.tokens * kPieces * 128;
  args.stages = std::min(kSharedBytes / args.stage_bytes, kStagesMax);
  args.flight = std::min(kFlight, args.stages);
  const auto kernel = tens_kernel<S>;
  const int bytes = args.stages * args.stage_bytes;
  TM_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  const int tiles = (args.n + S::kCols - 1) / S::kCols;
  const int blocks = std::min((tiles + kCluster - 1) / kCluster * kCluster, blocks_max(num_sms));
  const LaunchConfig launch(static_cast<unsigned>(blocks), kBlockThreads, static_cast<size_t>(bytes), stream, true,
                            kCluster);
  check_cuda(cudaLaunchKernelEx(&launch.config, kernel, args), "tens_linear");
}

// What a tile's round takes: its weights, and its part of the input at the rate of L2.
double cost(const StreamProduct& product, int cols, int blocks) {
  const int64_t tiles = (product.n + cols - 1) / cols, rounds = (tiles + blocks - 1) / blocks;
  const int rows = product.second != nullptr ? 2 * cols : cols;
  return static_cast<double>(rounds) * (rows + 0.25 / kCluster * product.rows);
}

template <class T>
void launch_best(const StreamProduct& product, int num_sms, cudaStream_t stream) {
  using Launch = void (*)(const StreamProduct&, int, cudaStream_t);
  struct Candidate {
    int cols;
    Launch launch;
  };
  static constexpr Candidate kPlain[] = {{32, launch<Shape<T, 32, false>>},  {48, launch<Shape<T, 48, false>>},
                                         {64, launch<Shape<T, 64, false>>},  {80, launch<Shape<T, 80, false>>},
                                         {96, launch<Shape<T, 96, false>>},  {120, launch<Shape<T, 120, false>>},
                                         {128, launch<Shape<T, 128, false>>}};
  static constexpr Candidate kGated[] = {{32, launch<Shape<T, 32, true>>},
                                         {40, launch<Shape<T, 40, true>>},
                                         {48, launch<Shape<T, 48, true>>},
                                         {56, launch<Shape<T, 56, true>>},
                                         {64, launch<Shape<T, 64, true>>}};
  const std::span<const Candidate> candidates =
      product.second != nullptr ? std::span<const Candidate>(kGated) : std::span<const Candidate>(kPlain);
  const int blocks = blocks_max(num_sms);
  const auto& best =
      *std::ranges::min_element(candidates, {}, [&](const Candidate& one) { return cost(product, one.cols, blocks); });
  best.launch(product, num_sms, stream);
}

}  // namespace

bool can_take_tens(const StreamProduct& product) {
  static PerDevice is_built;
  if (!has_body(reinterpret_cast<const void*>(tens_kernel<Shape<uint16_t, 32, false>>), is_built)) return false;
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
  const auto launch = is_f16 ? launch_best<Float16> : launch_best<uint16_t>;
  launch(product, num_sms, stream);
}

}  // namespace tokenmill
