// Products of many rows. A block makes tiles of 128 rows by as many columns as one wgmma has: two groups of four warps
// have 64 rows each. One warp keeps a ring of stages of 64 along K filled by tensor copies. Of a gated layer half of
// the columns are gate's and half up's, side by side, so that they meet in a thread's registers. The two blocks of a
// cluster have neighbouring rows and the same columns, of which each copies half to both.
//
// The second group runs some stages behind the first, so that one's outputs are finished beside the other's products.
//
// Sliced products have the bits of wide_linear.h's kernels: the sums of a slice of K start from zero and are added to
// those of the slices before, which a lane keeps beside them. That is why their tiles are narrower.
#include "ops/cuda/many_linear.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "ops/cuda/activation.cuh"
#include "ops/cuda/hopper.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/slices.cuh"
#include "ops/cuda/tensor_map.h"
#include "ops/cuda/wgmma.cuh"

namespace tokenmill {
namespace {

constexpr int kGroups = 2, kRows = 64 * kGroups;  // of a tile
constexpr int kThreads = 128 * (kGroups + 1);
constexpr int kRingBytes = 200 << 10;
constexpr double kWorkMin = 0.93;  // share of the multiprocessors' time

struct ManyArgs {
  CUtensorMap x, weight, second;
  const float *bias, *second_bias;
  int k, n, rows;
  bool gated, add, aligned_out;
  Activation activation;
  float* out;
  uint16_t* out_half;
  int64_t out_stride;
  int row_groups, tiles;  // of a cluster
};

// kCols weight rows a tile, kCluster blocks to a cluster.
template <int kColsIn, int kClusterIn, bool kSlicedIn>
struct Shape {
  static constexpr int kCols = kColsIn, kCluster = kClusterIn;
  static constexpr bool kSliced = kSlicedIn;
  static constexpr int kSums = kCols / 2;           // of a lane
  static_assert(kSums * (kSliced ? 2 : 1) <= 192);  // of its registers: a slice's sums and the total
  static constexpr int kInputBytes = kRows * 128, kHalfBytes = kCols / 2 * 128;
  static constexpr int kStageBytes = kInputBytes + 2 * kHalfBytes;
  static constexpr int kStages = kRingBytes / kStageBytes, kBytes = kStages * kStageBytes;
};

#if __CUDA_ARCH_FEAT_SM90_ALL

constexpr int kRowsAtOnce = 8;  // row groups one below the other that go through the columns together
constexpr int kBehind = 2;      // stages

struct Ring {
  uint32_t stages, full, empty;
};

template <class S>
struct Tile {
  int row, col;  // of the block
  __device__ Tile(const ManyArgs& args, int index, int rank) {
    const int cols = args.tiles / args.row_groups, of_rows = kRowsAtOnce * cols;
    const int first = index / of_rows * kRowsAtOnce, groups = min(kRowsAtOnce, args.row_groups - first);
    const int rest = index % of_rows;
    row = ((first + rest % groups) * S::kCluster + rank) * kRows;
    col = rest / groups * (args.gated ? S::kCols / 2 : S::kCols);
  }
};

template <class S>
__device__ void fill_ring(const ManyArgs& args, const Ring& ring) {
  const int rank = blockIdx.x % S::kCluster;
  const uint64_t often = evict_last_policy();
  const CUtensorMap* const second = args.gated ? &args.second : &args.weight;
  const int ahead = args.gated ? 0 : S::kCols / 2;
  Turn at;
  for (int index = blockIdx.x / S::kCluster; index < args.tiles; index += gridDim.x / S::kCluster) {
    const Tile<S> tile(args, index, rank);
    for (int piece = 0; piece < args.k / 64; ++piece, at.step(S::kStages)) {
      wait_barrier(ring.empty + 8 * at.stage, at.parity ^ 1);
      const uint32_t target = ring.stages + at.stage * S::kStageBytes, barrier = ring.full + 8 * at.stage;
      const uint32_t weights = target + S::kInputBytes;
      expect_bytes(barrier, S::kStageBytes);
      copy_box(target, &args.x, tile.row, piece, barrier, often);
      if constexpr (S::kCluster == 1) {
        copy_box(weights, &args.weight, tile.col, piece, barrier, often);
        copy_box(weights + S::kHalfBytes, second, tile.col + ahead, piece, barrier, often);
      } else {
        copy_to_all<S::kCluster>(weights + rank * S::kHalfBytes, rank == 0 ? &args.weight : second,
                                 tile.col + rank * ahead, piece, barrier, often);
      }
    }
  }
}

__device__ inline float2 plus(float2 a, float2 b) { return {a.x + b.x, a.y + b.y}; }
__device__ inline float2 two_of(const float* values, int at) {
  return values != nullptr ? *reinterpret_cast<const float2*>(values + at) : float2{};
}

__device__ inline float2 read_two(const ManyArgs& args, int64_t at) {
  const float* const out = args.out + at;
  if (args.aligned_out) return __ldcg(reinterpret_cast<const float2*>(out));
  return {__ldcg(out), __ldcg(out + 1)};
}
template <class T>
__device__ inline void write_two(const ManyArgs& args, int64_t at, float2 v) {
  if (args.out_half != nullptr) {
    const uint32_t pair = pair_of<T>(v.x, v.y);
    uint16_t* const out = args.out_half + at;
    if (args.aligned_out) {
      *reinterpret_cast<uint32_t*>(out) = pair;
    } else {
      out[0] = static_cast<uint16_t>(pair);
      out[1] = static_cast<uint16_t>(pair >> 16);
    }
    return;
  }
  float* const out = args.out + at;
  if (args.aligned_out) {
    *reinterpret_cast<float2*>(out) = v;
  } else {
    out[0] = v.x;
    out[1] = v.y;
  }
}

// Columns of gate, then of up, in a lane's sums.
template <class T, class S, Activation kActivation>
__device__ void write_gated(const ManyArgs& args, const Tile<S>& tile, const float (&sums)[S::kSums]) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, row = tile.row + threadIdx.x / 32 * 16 + g;
  const int col = tile.col + 2 * t;
  const bool has_bias = args.bias != nullptr || args.second_bias != nullptr;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int cols = row + half * 8 < args.rows ? args.n - col : 0;  // from the lane's first one on
    const int64_t place = (row + half * 8) * args.out_stride + col;
#pragma unroll
    for (int n = 0; n < S::kCols / 2; n += 8) {
      const int at = n / 2 + half * 2;
      float2 a = {sums[at], sums[at + 1]}, b = {sums[S::kSums / 2 + at], sums[S::kSums / 2 + at + 1]};
      if constexpr (!S::kSliced) {  // as products that are written and read again
        const uint32_t gate = pair_of<T>(a.x, a.y), up = pair_of<T>(b.x, b.y);
        a = {low_of<T>(gate), high_of<T>(gate)};
        b = {low_of<T>(up), high_of<T>(up)};
      }
      if (has_bias && n < cols) {
        a = plus(a, two_of(args.bias, col + n));
        b = plus(b, two_of(args.second_bias, col + n));
      }
      const float2 v = {activate(kActivation, a.x) * b.x, activate(kActivation, a.y) * b.y};
      if (n < cols) write_two<T>(args, place + n, v);
    }
  }
}

template <class T, class S>
__device__ void write_plain(const ManyArgs& args, const Tile<S>& tile, const float (&sums)[S::kSums]) {
  constexpr int kPairs = 8;  // whose outputs to add to are read at a time
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, row = tile.row + threadIdx.x / 32 * 16 + g;
  const int col = tile.col + 2 * t;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int cols = row + half * 8 < args.rows ? args.n - col : 0;
    const int64_t place = (row + half * 8) * args.out_stride + col;
#pragma unroll
    for (int first = 0; first < S::kCols; first += 8 * kPairs) {
      float2 before[kPairs];
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        const int n = first + 8 * i;
        if (args.add && n < cols) before[i] = read_two(args, place + n);
      }
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        const int n = first + 8 * i, at = n / 2 + half * 2;
        if (n >= cols) continue;
        float2 v = {sums[at], sums[at + 1]};
        if (args.bias != nullptr) v = plus(v, two_of(args.bias, col + n));
        if (args.add) v = plus(v, before[i]);
        write_two<T>(args, place + n, v);
      }
    }
  }
}

template <class T, class S>
__device__ void write_tile(const ManyArgs& args, const Tile<S>& tile, const float (&sums)[S::kSums]) {
  if (S::kSliced && !args.gated) {
    write_plain<T, S>(args, tile, sums);
  } else if (args.activation == Activation::kSilu) {
    write_gated<T, S, Activation::kSilu>(args, tile, sums);
  } else {
    write_gated<T, S, Activation::kGeluTanh>(args, tile, sums);
  }
}

// sums = the products of the next `pieces` stages, at least one. `wakes`: this is the first group, and the second one
// still waits for it; for what follows it does not.
template <class T, class S>
__device__ void multiply(const Ring& ring, int pieces, float (&sums)[S::kSums], Turn& at, bool& wakes) {
  const int lane = threadIdx.x % 32, group = threadIdx.x / 128;
  int before = 0;
  for (int piece = 0; piece < pieces; ++piece, at.step(S::kStages)) {
    wait_barrier(ring.full + 8 * at.stage, at.parity);
    const uint32_t x = ring.stages + at.stage * S::kStageBytes + group * 64 * 128;
    const uint32_t weights = ring.stages + at.stage * S::kStageBytes + S::kInputBytes;
    pin(sums);
    fence_products();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      multiply_shared<T>(sums, descriptor(x + k * 32, 16, 1024), descriptor(weights + k * 32, 16, 1024),
                         piece > 0 || k > 0);
    }
    commit_products();
    wait_products<1>();
    if (piece > 0 && lane < S::kCluster) hand_back_there(ring.empty + 8 * before, lane);
    before = at.stage;
    if (wakes && piece == min(kBehind, pieces - 1)) {
      asm volatile("bar.arrive 1, 256;" ::: "memory");
      wakes = false;
    }
  }
  wait_products<0>();
  pin(sums);
  if (lane < S::kCluster) hand_back_there(ring.empty + 8 * before, lane);
}

template <class T, class S>
__device__ void multiply_tiles(const ManyArgs& args, const Ring& ring) {
  const int rank = blockIdx.x % S::kCluster, pieces = args.k / 64;
  Turn at;
  bool wakes = threadIdx.x < 128;
  if (!wakes) asm volatile("bar.sync 1, 256;" ::: "memory");
  for (int index = blockIdx.x / S::kCluster; index < args.tiles; index += gridDim.x / S::kCluster) {
    float sums[S::kSums];
    if constexpr (S::kSliced) {
      float total[S::kSums] = {};
#pragma unroll 1
      for (int slice = 0; slice < kSlices; ++slice) {
        const int count = slice_begin(slice + 1, pieces) - slice_begin(slice, pieces);
        if (count == 0) continue;
        multiply<T, S>(ring, count, sums, at, wakes);
#pragma unroll
        for (int i = 0; i < S::kSums; ++i) total[i] += sums[i];
      }
      write_tile<T, S>(args, Tile<S>(args, index, rank), total);
    } else {
      multiply<T, S>(ring, pieces, sums, at, wakes);
      write_tile<T, S>(args, Tile<S>(args, index, rank), sums);
    }
  }
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <class T, class S>
__global__ void __launch_bounds__(kThreads, 1) many_kernel(const __grid_constant__ ManyArgs args) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ __align__(8) uint64_t barriers[2 * S::kStages];
  const uint32_t full = shared_address(barriers);
  const Ring ring{shared_address(shared), full, full + 8 * S::kStages};
  let_next_start();
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < S::kStages; ++stage) {
      init_barrier(ring.full + 8 * stage, 1);
      init_barrier(ring.empty + 8 * stage, S::kCluster * 4 * kGroups);  // a lane of every multiplying warp
    }
    fence_barriers();
  }
  __syncthreads();
  meet_cluster();  // the other's barriers are there
  wait_for_previous();
  if (threadIdx.x >= 128 * kGroups) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 128 * kGroups) fill_ring<S>(args, ring);
    __syncwarp();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    multiply_tiles<T, S>(args, ring);
  }
  meet_cluster();  // the other may still copy to this block, or arrive at its barriers
#endif
}

// Clusters that the device holds at a time; depends on how its multiprocessors hang together.
template <class S>
int clusters_max(int num_sms) {
  if (S::kCluster == 1) return num_sms;
  static PerDevice known;
  return known.get([num_sms] {
    const auto kernel = many_kernel<uint16_t, S>;
    TM_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kBytes));
    const LaunchConfig launch(static_cast<unsigned>(num_sms / S::kCluster * S::kCluster), kThreads, S::kBytes, nullptr,
                              true, S::kCluster);
    int clusters = 0;
    TM_CUDA(cudaOccupancyMaxActiveClusters(&clusters, kernel, &launch.config));
    return std::clamp(clusters, 1, num_sms / S::kCluster);
  });
}

template <class S>
int64_t count_row_groups(const StreamProduct& product) {
  return (product.rows + S::kCluster * kRows - 1) / (S::kCluster * kRows);
}
template <class S>
int64_t count_tiles(const StreamProduct& product) {
  const int cols = product.second != nullptr ? S::kCols / 2 : S::kCols;
  return count_row_groups<S>(product) * ((product.n + cols - 1) / cols);
}
template <class S>
double count_rounds(const StreamProduct& product, int num_sms) {
  return std::ceil(static_cast<double>(count_tiles<S>(product)) / clusters_max<S>(num_sms));
}

template <class T, class S>
void launch(const StreamProduct& product, int num_sms, cudaStream_t stream) {
  ManyArgs args{};
  args.x = columns_map(product.x, product.rows, product.k, product.x_stride, kRows, 1);
  args.weight = columns_map(product.weight, product.n, product.k, product.k, S::kCols / 2, 1);
  args.gated = product.second != nullptr;
  if (args.gated) args.second = columns_map(product.second, product.n, product.k, product.k, S::kCols / 2, 1);
  take_over(product, args);
  const bool is_half = product.out_half != nullptr;
  const uintptr_t out =
      is_half ? reinterpret_cast<uintptr_t>(product.out_half) : reinterpret_cast<uintptr_t>(product.out);
  args.aligned_out = product.out_stride % 2 == 0 && out % (is_half ? 4 : 8) == 0;
  args.row_groups = static_cast<int>(count_row_groups<S>(product));
  args.tiles = static_cast<int>(count_tiles<S>(product));
  const auto kernel = many_kernel<T, S>;
  TM_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kBytes));
  const int clusters = std::min(args.tiles, clusters_max<S>(num_sms));
  const LaunchConfig launch(static_cast<unsigned>(clusters * S::kCluster), kThreads, S::kBytes, stream, true,
                            S::kCluster);
  check_cuda(cudaLaunchKernelEx(&launch.config, kernel, args), "many_linear");
}

using Whole = Shape<256, 2, false>;
using Large = Shape<192, 2, true>;
using Medium = Shape<128, 2, true>;
using Small = Shape<128, 1, true>;

// A round's time, by which the shape is chosen: what its tiles took of an H200's time.
constexpr double kLargeTime = 192, kMediumTime = 138, kSmallTime = 145;

template <class T>
void launch_sliced(const StreamProduct& product, int num_sms, cudaStream_t stream) {
  const double large = kLargeTime * count_rounds<Large>(product, num_sms);
  const double medium = kMediumTime * count_rounds<Medium>(product, num_sms);
  const double small = kSmallTime * count_rounds<Small>(product, num_sms);
  const bool is_one_row_of_tiles = product.rows <= kRows;  // nothing to do for a cluster's second block
  if (is_one_row_of_tiles || small < std::min(large, medium)) return launch<T, Small>(product, num_sms, stream);
  if (medium <= large) return launch<T, Medium>(product, num_sms, stream);
  launch<T, Large>(product, num_sms, stream);
}

}  // namespace

bool can_take_many(const StreamProduct& product, int num_sms) {
  static PerDevice is_built;
  if (!has_body(reinterpret_cast<const void*>(many_kernel<uint16_t, Whole>), is_built)) return false;
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
  const double rounds = count_rounds<Whole>(product, num_sms), tile = Whole::kCluster * kRows * Whole::kCols / 2;
  return static_cast<double>(product.rows) * static_cast<double>(product.n) >=
         kWorkMin * clusters_max<Whole>(num_sms) * rounds * tile;
}

void launch_many_product(const StreamProduct& product, int num_sms, cudaStream_t stream) {
  TM_CHECK(product.rows >= 1);
  if (product.dtype == DType::kF16) return launch<Float16, Whole>(product, num_sms, stream);
  launch<uint16_t, Whole>(product, num_sms, stream);
}

void launch_sliced_product(const StreamProduct& product, int num_sms, cudaStream_t stream) {
  TM_CHECK(product.rows >= 1);
  if (product.dtype == DType::kF16) return launch_sliced<Float16>(product, num_sms, stream);
  launch_sliced<uint16_t>(product, num_sms, stream);
}

}  // namespace tokenmill
