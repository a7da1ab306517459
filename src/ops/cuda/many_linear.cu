// A block makes tiles of 128 rows by 128 columns of the output, from as many rows of gate and of up: two groups of four
// warps have 64 rows each, with the columns of both products side by side in one wgmma, so that they meet in a thread's
// registers. One warp keeps a ring of stages of 64 along K filled by tensor copies. The two blocks of a cluster have
// neighbouring rows and the same columns: one copies gate to both, the other up.
//
// The second group runs some stages behind the first, so that one's activations run beside the other's products.
#include "ops/cuda/many_linear.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "ops/cuda/activation.cuh"
#include "ops/cuda/hopper.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/tensor_map.h"
#include "ops/cuda/wgmma.cuh"

namespace tokenmill {
namespace {

constexpr int kCluster = 2, kGroups = 2, kStages = 4;
constexpr int kRows = 64 * kGroups, kCols = 128;  // of a tile
constexpr int kThreads = 128 * (kGroups + 1);
constexpr int kInputBytes = kRows * 128, kWeightBytes = kCols * 128, kStageBytes = kInputBytes + 2 * kWeightBytes;
constexpr double kWorkMin = 0.93;  // share of the multiprocessors' time

struct ManyArgs {
  CUtensorMap x, weight, second;
  const float *bias, *second_bias;
  int k, n, rows;
  bool add;
  Activation activation;
  float* out;  // unused, as is add
  uint16_t* out_half;
  int64_t out_stride;
  int row_pairs, tiles;  // tiles: of a cluster
};

#if __CUDA_ARCH_FEAT_SM90_ALL

constexpr int kRowsAtOnce = 8;  // pairs of tiles one below the other that go through the columns together
constexpr int kBehind = 2;      // stages

struct Tile {
  int row, col;  // of the block
  __device__ Tile(const ManyArgs& args, int index, int rank) {
    const int cols = args.tiles / args.row_pairs, of_rows = kRowsAtOnce * cols;
    const int first = index / of_rows * kRowsAtOnce, pairs = min(kRowsAtOnce, args.row_pairs - first);
    const int rest = index % of_rows;
    row = ((first + rest % pairs) * kCluster + rank) * kRows;
    col = rest / pairs * kCols;
  }
};

__device__ inline void fill_ring(const ManyArgs& args, uint32_t ring, uint32_t full, uint32_t empty) {
  const int rank = blockIdx.x % kCluster;
  const uint64_t often = evict_last_policy();
  const CUtensorMap* const weights = rank == 0 ? &args.weight : &args.second;
  RingTurn<kStages> at;
  for (int index = blockIdx.x / kCluster; index < args.tiles; index += gridDim.x / kCluster) {
    const Tile tile(args, index, rank);
    for (int piece = 0; piece < args.k / 64; ++piece, at.step()) {
      wait_barrier(empty + 8 * at.stage, at.parity ^ 1);
      const uint32_t target = ring + at.stage * kStageBytes, barrier = full + 8 * at.stage;
      expect_bytes(barrier, kStageBytes);
      copy_box(target, &args.x, tile.row, piece, barrier, often);
      copy_to_all<kCluster>(target + kInputBytes + rank * kWeightBytes, weights, tile.col, piece, barrier, often);
    }
  }
}

__device__ inline float2 two_of(const float* values, int at) {
  return values != nullptr ? *reinterpret_cast<const float2*>(values + at) : float2{};
}

// Columns of gate, then of up, in a lane's sums.
template <class T, Activation kActivation>
__device__ void write_gated(const ManyArgs& args, const Tile& tile, const float (&sums)[kCols]) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, row = tile.row + threadIdx.x / 32 * 16 + g;
  const int col = tile.col + 2 * t;
  const bool has_bias = args.bias != nullptr || args.second_bias != nullptr;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int cols = row + half * 8 < args.rows ? args.n - col : 0;  // from the lane's first one on
    uint16_t* const out = args.out_half + (row + half * 8) * args.out_stride + col;
#pragma unroll
    for (int n = 0; n < kCols; n += 8) {
      const int at = n / 2 + half * 2;
      // Rounded as products that are written and read again.
      const uint32_t gate = pair_of<T>(sums[at], sums[at + 1]);
      const uint32_t up = pair_of<T>(sums[kCols / 2 + at], sums[kCols / 2 + at + 1]);
      float2 a = {low_of<T>(gate), high_of<T>(gate)}, b = {low_of<T>(up), high_of<T>(up)};
      if (has_bias && n < cols) {
        const float2 more = two_of(args.bias, col + n), other = two_of(args.second_bias, col + n);
        a = {a.x + more.x, a.y + more.y};
        b = {b.x + other.x, b.y + other.y};
      }
      const uint32_t pair = pair_of<T>(activate(kActivation, a.x) * b.x, activate(kActivation, a.y) * b.y);
      if (n < cols) *reinterpret_cast<uint32_t*>(out + n) = pair;
    }
  }
}

template <class T>
__device__ void write_tile(const ManyArgs& args, const Tile& tile, const float (&sums)[kCols]) {
  if (args.activation == Activation::kSilu) {
    write_gated<T, Activation::kSilu>(args, tile, sums);
  } else {
    write_gated<T, Activation::kGeluTanh>(args, tile, sums);
  }
}

template <class T>
__device__ void multiply_tiles(const ManyArgs& args, uint32_t ring, uint32_t full, uint32_t empty) {
  const int rank = blockIdx.x % kCluster, lane = threadIdx.x % 32, group = threadIdx.x / 128, pieces = args.k / 64;
  RingTurn<kStages> at;
  if (group == 1) asm volatile("bar.sync 1, 256;" ::: "memory");
  bool is_first = true;
  for (int index = blockIdx.x / kCluster; index < args.tiles; index += gridDim.x / kCluster) {
    float sums[kCols];
    int before = 0;
    for (int piece = 0; piece < pieces; ++piece, at.step()) {
      wait_barrier(full + 8 * at.stage, at.parity);
      const uint32_t x = ring + at.stage * kStageBytes + group * 64 * 128;
      const uint32_t weights = ring + at.stage * kStageBytes + kInputBytes;
      pin(sums);
      fence_products();
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        multiply_shared<T>(sums, descriptor(x + k * 32, 16, 1024), descriptor(weights + k * 32, 16, 1024),
                           piece > 0 || k > 0);
      }
      commit_products();
      wait_products<1>();
      if (piece > 0 && lane < kCluster) hand_back_there(empty + 8 * before, lane);
      before = at.stage;
      if (is_first && group == 0 && piece == min(kBehind, pieces - 1)) asm volatile("bar.arrive 1, 256;" ::: "memory");
    }
    wait_products<0>();
    pin(sums);
    if (lane < kCluster) hand_back_there(empty + 8 * before, lane);
    is_first = false;
    write_tile<T>(args, Tile(args, index, rank), sums);
  }
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <class T>
__global__ void __launch_bounds__(kThreads, 1) many_kernel(const __grid_constant__ ManyArgs args) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ __align__(8) uint64_t barriers[2 * kStages];
  const uint32_t ring = shared_address(shared), full = shared_address(barriers), empty = full + 8 * kStages;
  let_next_start();
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      init_barrier(full + 8 * stage, 1);
      init_barrier(empty + 8 * stage, kCluster * 4 * kGroups);  // a lane of every multiplying warp of both blocks
    }
    fence_barriers();
  }
  __syncthreads();
  meet_cluster();  // the other's barriers are there
  wait_for_previous();
  if (threadIdx.x >= 128 * kGroups) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 128 * kGroups) fill_ring(args, ring, full, empty);
    __syncwarp();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    multiply_tiles<T>(args, ring, full, empty);
  }
  meet_cluster();  // the other may still copy to this block, or arrive at its barriers
#endif
}

constexpr int kBytes = kStages * kStageBytes;

// Clusters that the device holds at a time; depends on how its multiprocessors hang together.
int clusters_max(int num_sms) {
  static PerDevice known;
  return known.get([num_sms] {
    const auto kernel = many_kernel<uint16_t>;
    TM_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
    const LaunchConfig launch(static_cast<unsigned>(num_sms / kCluster * kCluster), kThreads, kBytes, nullptr, true,
                              kCluster);
    int clusters = 0;
    TM_CUDA(cudaOccupancyMaxActiveClusters(&clusters, kernel, &launch.config));
    return std::clamp(clusters, 1, num_sms / kCluster);
  });
}

int64_t count_row_pairs(const StreamProduct& product) {
  return (product.rows + kCluster * kRows - 1) / (kCluster * kRows);
}
int64_t count_tiles(const StreamProduct& product) {
  return count_row_pairs(product) * ((product.n + kCols - 1) / kCols);
}

template <class T>
void launch(const StreamProduct& product, int num_sms, cudaStream_t stream) {
  ManyArgs args{};
  args.x = columns_map(product.x, product.rows, product.k, product.x_stride, kRows, 1);
  args.weight = columns_map(product.weight, product.n, product.k, product.k, kCols, 1);
  args.second = columns_map(product.second, product.n, product.k, product.k, kCols, 1);
  take_over(product, args);
  args.row_pairs = static_cast<int>(count_row_pairs(product));
  args.tiles = static_cast<int>(count_tiles(product));
  const auto kernel = many_kernel<T>;
  TM_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const int clusters = std::min(args.tiles, clusters_max(num_sms));
  const LaunchConfig launch(static_cast<unsigned>(clusters * kCluster), kThreads, kBytes, stream, true, kCluster);
  check_cuda(cudaLaunchKernelEx(&launch.config, kernel, args), "many_linear");
}

}  // namespace

bool can_take_many(const StreamProduct& product, int num_sms) {
  static PerDevice is_built;
  if (!has_body(reinterpret_cast<const void*>(many_kernel<uint16_t>), is_built)) return false;
  if (product.x_float || product.norm != nullptr) return false;
  if (product.second == nullptr || product.out_half == nullptr || product.add) return false;
  const auto is_aligned = [](const void* pointer, uintptr_t bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
  };
  if (product.k % 64 != 0 || product.n % 8 != 0 || product.n >= int64_t{1} << 31 || product.x_stride % 8 != 0 ||
      product.out_stride % 2 != 0 || !is_aligned(product.x, 16) || !is_aligned(product.out_half, 4) ||
      !is_aligned(product.bias, 8) || !is_aligned(product.second_bias, 8)) {
    return false;
  }
  const double clusters = clusters_max(num_sms), tile = kCluster * kRows * kCols;
  const double rounds = std::ceil(static_cast<double>(count_tiles(product)) / clusters);
  return static_cast<double>(product.rows) * static_cast<double>(product.n) >= kWorkMin * clusters * rounds * tile;
}

void launch_many_product(const StreamProduct& product, int num_sms, cudaStream_t stream) {
  TM_CHECK(product.rows >= 1);
  if (product.dtype == DType::kF16) return launch<Float16>(product, num_sms, stream);
  launch<uint16_t>(product, num_sms, stream);
}

}  // namespace tokenmill
