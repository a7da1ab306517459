// All of a product in one round: a cluster of four blocks has a tile of weight rows, just as many as give every cluster
// one, and each of its blocks a quarter of K. The input's rows are the 64-row operand of wgmma, the weights the other.
//
// Why K is cut: every block reads the input along its part of K, from L2, whose rate is not much above the memory's.
// With all of K, and tiles of a quarter of the weight rows, that would be four times as much; at 64 rows of input and
// 32 weight rows twice the bytes of the weights, more than a multiprocessor takes in.
//
// One thread keeps a ring of stages filled with weights, another with the input's pieces, four warps multiply. At the
// end the blocks send each other their sums, each finishes a quarter of the tile's columns. Sums run in order of K
// within a part, and parts are added in their order: the same bits whenever the same product is made.
#include "ops/cuda/split_linear.h"

#include <algorithm>
#include <iterator>

#include "base/check.h"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/hopper.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/slices.cuh"
#include "ops/cuda/tensor_map.h"
#include "ops/cuda/wgmma.cuh"

namespace tokenmill {
namespace {

constexpr int kStagesMax = 12, kThreads = 128;  // that multiply
constexpr int kBlockThreads = kThreads + 64;    // a warp for weights, one for the input
// Nearly all that a multiprocessor has: with room for a block of attention's beside this one it was 2 to 4 % slower.
constexpr int kSharedBytes = 220 << 10;
// Stages of weights that a block has under way, as in stream_linear.cu; of at most 26 KiB.
constexpr int kFlight = 4;

struct SplitArgs {
  CUtensorMap weight, x;
  const float* bias;
  int k, n, rows;
  bool add;
  float* out;
  int64_t out_stride;
  int tokens;  // rows that a copy of the input brings
  int stages, stage_bytes;
  int flight;  // stages of weights under way at most
};

// kCols weight rows, kPieces times 64 of K a stage.
template <class T, int kColsIn>
struct Shape {
  using Value = T;
  static constexpr int kCols = kColsIn, kPieces = kCols > 64 ? 1 : 2;
  static constexpr int kWeightBytes = kCols * kPieces * 128;     // [kCols / 8][kPieces][8][64]
  static constexpr int kShare = kCols / kSlices;                 // columns that a block finishes
  static constexpr int kSumStride = (kShare + 7) / 16 * 16 + 8;  // floats: a warp's sums fall into 32 banks
  static_assert(kCols % 16 == 0 && kSumStride >= kShare);
  // wgmma reads 64 rows of input whatever their number: what follows the fewest is read too.
  static_assert(kWeightBytes >= (64 - 8) * 128);
};

#if __CUDA_ARCH_FEAT_SM90_ALL

struct Barriers {
  uint32_t full, came, empty, received;
};

// What a block finishes of a row, in fours, and what one of its threads does of all rows.
template <class S>
constexpr int kQuads = S::kShare / 4;
template <class S>
constexpr int kOwn = (kQuads<S> * kSplitRowsMax + kThreads - 1) / kThreads;

// A block's part of K, in pieces of 64 columns.
struct Part {
  int begin, stages;
  __device__ Part(int k, int rank, int pieces) {
    begin = slice_begin(rank, k / 64);
    stages = (slice_begin(rank + 1, k / 64) - begin + pieces - 1) / pieces;
  }
};

template <class S>
__device__ void fill_weights(const SplitArgs& args, uint32_t ring, const Barriers& barriers, const Part& part) {
  const uint64_t once = evict_first_policy();
  const int group = blockIdx.x / kSlices * (S::kCols / 8);
  Turn turn, arriving;
  for (int i = 0; i < part.stages; ++i) {
    if (i >= args.flight) {
      wait_barrier(barriers.full + 8 * arriving.stage, arriving.parity);
      arriving.step(args.stages);
    }
    if (i >= args.stages) wait_barrier(barriers.empty + 8 * turn.stage, turn.parity ^ 1);
    const uint32_t barrier = barriers.full + 8 * turn.stage;
    expect_bytes(barrier, S::kWeightBytes);
    copy_row_groups(ring + (turn.stage + 1) * args.stage_bytes - S::kWeightBytes, &args.weight,
                    part.begin + i * S::kPieces, group, barrier, once);
    turn.step(args.stages);
  }
}

template <class S>
__device__ void fill_inputs(const SplitArgs& args, uint32_t ring, const Barriers& barriers, const Part& part) {
  const uint64_t often = evict_last_policy();
  wait_for_previous();
  Turn turn;
  for (int i = 0; i < part.stages; ++i) {
    if (i >= args.stages) wait_barrier(barriers.empty + 8 * turn.stage, turn.parity ^ 1);
    const uint32_t barrier = barriers.came + 8 * turn.stage;
    expect_bytes(barrier, args.tokens * S::kPieces * 128);
    copy_box(ring + turn.stage * args.stage_bytes, &args.x, 0, part.begin + i * S::kPieces, barrier, often);
    turn.step(args.stages);
  }
}

template <class S>
__device__ void multiply_part(const SplitArgs& args, float (&acc)[S::kCols / 2], uint32_t ring,
                              const Barriers& barriers, const Part& part) {
  const bool first_of_warp = threadIdx.x % 32 == 0;
  Turn turn;
  int before = 0;
#pragma unroll
  for (float& sum : acc) sum = 0;
  pin(acc);
  for (int i = 0; i < part.stages; ++i) {
    wait_barrier(barriers.full + 8 * turn.stage, turn.parity);
    wait_barrier(barriers.came + 8 * turn.stage, turn.parity);
    const uint32_t input = ring + turn.stage * args.stage_bytes;
    const uint32_t weights = input + args.stage_bytes - S::kWeightBytes;
    pin(acc);
    fence_products();
    multiply_pieces<typename S::Value, S::kPieces>(acc, {input, args.tokens * 128, 1024},
                                                   {weights, 1024, S::kPieces * 1024});
    commit_products();
    wait_products<1>();
    if (first_of_warp && i > 0) arrive(barriers.empty + 8 * before);
    before = turn.stage;
    turn.step(args.stages);
  }
  wait_products<0>();
  pin(acc);
}

__device__ inline void sync_multipliers() { asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory"); }

// The block's sums as [column / kShare][row][column % kShare]: what one block finishes lies together.
template <class S>
__device__ void put_sums(const float (&acc)[S::kCols / 2], int rows, float* sums) {
  const int row0 = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
  for (int i = 0; i < S::kCols / 4; ++i) {
    const int row = row0 + i % 2 * 8, col = i / 2 * 8 + threadIdx.x % 4 * 2;
    if (row >= rows) continue;
    *reinterpret_cast<float2*>(sums + (col / S::kShare * rows + row) * S::kSumStride + col % S::kShare) = {
        acc[2 * i], acc[2 * i + 1]};
  }
}

__device__ inline float4 plus(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

// The outputs that the block finishes, four neighbouring ones at a time, dealt out to the threads.
template <class S>
struct Outputs {
  const SplitArgs& args;
  const int rank = blockIdx.x % kSlices;
  const int first_col = blockIdx.x / kSlices * S::kCols + rank * S::kShare;

  // run(u, row, quad, place) for those of the thread.
  template <class Run>
  __device__ void each(Run&& run) const {
#pragma unroll
    for (int u = 0; u < kOwn<S>; ++u) {
      const int cell = threadIdx.x + u * kThreads, row = cell / kQuads<S>, quad = cell % kQuads<S> * 4;
      if (row < args.rows && first_col + quad < args.n) {
        run(u, row, quad, reinterpret_cast<float4*>(args.out + row * args.out_stride + first_col + quad));
      }
    }
  }
};

// Where the sums from one block lie in another, which has no place for its own.
__device__ inline int place_of(int from, int block) { return from < block ? from : from - 1; }

// Every block has the sums of its part of K, and finishes a quarter of the columns. Each copies to each other what that
// one finishes, and reads its own where they are; the copies complete on the receiver's barrier, which orders them.
template <class S>
__device__ void merge(const SplitArgs& args, const float (&acc)[S::kCols / 2], const float4 (&before)[kOwn<S>],
                      float* sums, float* received, uint32_t barrier) {
  const int rank = blockIdx.x % kSlices, share = args.rows * S::kSumStride;
  sync_multipliers();  // the sums take the ring's place
  put_sums<S>(acc, args.rows, sums);
  fence_copies();
  sync_multipliers();
  wait_for_cluster();  // the others' barriers are there
  if (threadIdx.x == 0) expect_bytes(barrier, (kSlices - 1) * share * 4);
  if (threadIdx.x < kSlices && threadIdx.x != rank) {
    const int block = threadIdx.x;
    copy_there(cluster_address(shared_address(received + place_of(rank, block) * share), block),
               shared_address(sums + block * share), share * 4, cluster_address(barrier, block));
  }
  wait_barrier(barrier, 0);
  const Outputs<S> outputs{args};
  outputs.each([&](int u, int row, int quad, float4* place) {
    const int at = row * S::kSumStride + quad;
    float4 v{};
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) {
      const float* const part = slice == rank ? sums + rank * share : received + place_of(slice, rank) * share;
      v = plus(v, *reinterpret_cast<const float4*>(part + at));
    }
    if (args.bias != nullptr) {
      const float* const bias = args.bias + outputs.first_col + quad;
      v = plus(v, float4{bias[0], bias[1], bias[2], bias[3]});
    }
    *place = args.add ? plus(before[u], v) : v;
  });
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <class S>
__global__ void __launch_bounds__(kBlockThreads, 1) split_kernel(const __grid_constant__ SplitArgs args) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ __align__(8) uint64_t barrier_words[3 * kStagesMax + 1];
  const uint32_t ring = shared_address(shared), words = shared_address(barrier_words);
  const Barriers barriers{words, words + 8 * kStagesMax, words + 16 * kStagesMax, words + 24 * kStagesMax};
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Part part(args.k, blockIdx.x % kSlices, S::kPieces);
  let_next_start();
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < args.stages; ++stage) {
      init_barrier(barriers.full + 8 * stage, 1);
      init_barrier(barriers.came + 8 * stage, 1);
      init_barrier(barriers.empty + 8 * stage, kThreads / 32);
    }
    init_barrier(barriers.received, 1);
    fence_barriers();
  }
  __syncthreads();
  arrive_in_cluster();
  if (warp >= kThreads / 32) {
    if (lane == 0 && warp == kThreads / 32) fill_weights<S>(args, ring, barriers, part);
    if (lane == 0 && warp > kThreads / 32) fill_inputs<S>(args, ring, barriers, part);
    __syncwarp();
    wait_for_cluster();
  } else {
    wait_for_previous();
    float4 before[kOwn<S>];
    if (args.add) {
      Outputs<S>{args}.each([&](int u, int, int, const float4* place) { before[u] = __ldcg(place); });
    }
    float acc[S::kCols / 2];
    multiply_part<S>(args, acc, ring, barriers, part);
    float* const received = reinterpret_cast<float*>(shared + args.stages * args.stage_bytes);
    merge<S>(args, acc, before, reinterpret_cast<float*>(shared), received, barriers.received);
  }
  meet_cluster();  // others may still copy from this block, and it to them
#endif
}

template <class S>
void launch(const StreamProduct& product, cudaStream_t stream) {
  SplitArgs args{};
  args.tokens = (product.rows + 7) / 8 * 8;
  args.weight = row_groups_map(product.weight, product.n, product.k, S::kCols, S::kPieces);
  args.x = columns_map(product.x, product.rows, product.k, product.x_stride, args.tokens, S::kPieces);
  args.bias = product.bias;
  args.k = static_cast<int>(product.k);
  args.n = static_cast<int>(product.n);
  args.rows = product.rows;
  args.add = product.add;
  args.out = product.out;
  args.out_stride = product.out_stride;
  args.stage_bytes = S::kWeightBytes + args.tokens * S::kPieces * 128;
  const int share_bytes = args.rows * S::kSumStride * 4;
  const int received_bytes = (kSlices - 1) * share_bytes, room = kSharedBytes - received_bytes;
  args.stages = std::clamp(room / args.stage_bytes, 2, kStagesMax);
  args.flight = std::min(kFlight, args.stages);
  TM_CHECK(args.stages * args.stage_bytes >= kSlices * share_bytes);
  const int bytes = args.stages * args.stage_bytes + received_bytes;
  const auto kernel = split_kernel<S>;
  TM_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  const int tiles = (args.n + S::kCols - 1) / S::kCols;
  const LaunchConfig launch(static_cast<unsigned>(tiles * kSlices), kBlockThreads, static_cast<size_t>(bytes), stream,
                            true, kSlices);
  check_cuda(cudaLaunchKernelEx(&launch.config, kernel, args), "split_linear");
}

// Clusters that the device holds at a time; depends on how its multiprocessors hang together.
int clusters_max(int num_sms) {
  using S = Shape<uint16_t, 64>;  // all shapes are one block a multiprocessor
  static PerDevice known;
  return known.get([num_sms] {
    TM_CUDA(cudaFuncSetAttribute(split_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
    const auto blocks = static_cast<unsigned>(num_sms / kSlices * kSlices);
    const LaunchConfig launch(blocks, kBlockThreads, kSharedBytes, nullptr, true, kSlices);
    int clusters = 0;
    TM_CUDA(cudaOccupancyMaxActiveClusters(&clusters, split_kernel<S>, &launch.config));
    return std::clamp(clusters, 1, num_sms / kSlices);
  });
}

constexpr int kWidths[] = {32, 48, 64, 96, 128, 144, 192, 208};
constexpr int kWidthMax = kWidths[std::size(kWidths) - 1];

template <class T>
void launch_narrowest(const StreamProduct& product, int num_sms, cudaStream_t stream) {
  using Launch = void (*)(const StreamProduct&, cudaStream_t);
  static constexpr Launch kLaunches[] = {launch<Shape<T, 32>>,  launch<Shape<T, 48>>,  launch<Shape<T, 64>>,
                                         launch<Shape<T, 96>>,  launch<Shape<T, 128>>, launch<Shape<T, 144>>,
                                         launch<Shape<T, 192>>, launch<Shape<T, 208>>};
  static_assert(std::size(kLaunches) == std::size(kWidths));
  const int64_t rows = (product.n + clusters_max(num_sms) - 1) / clusters_max(num_sms);
  const auto width = std::ranges::lower_bound(kWidths, rows);
  kLaunches[static_cast<size_t>(width - std::begin(kWidths))](product, stream);
}

}  // namespace

bool can_split(const StreamProduct& product, int num_sms) {
  static PerDevice is_built;
  if (!has_body(reinterpret_cast<const void*>(split_kernel<Shape<uint16_t, 64>>), is_built)) return false;
  if (product.rows > kSplitRowsMax || product.x_float || product.norm != nullptr) return false;
  if (product.second != nullptr || product.out == nullptr) return false;
  return product.k % 64 == 0 && product.n % 8 == 0 && product.n <= int64_t{kWidthMax} * clusters_max(num_sms) &&
         product.x_stride % 8 == 0 && reinterpret_cast<uintptr_t>(product.x) % 16 == 0 && product.out_stride % 4 == 0 &&
         reinterpret_cast<uintptr_t>(product.out) % 16 == 0;
}

void launch_split_product(const StreamProduct& product, int num_sms, cudaStream_t stream) {
  TM_CHECK(product.rows >= 1 && can_split(product, num_sms));
  const bool is_f16 = product.dtype == DType::kF16;
  const auto launch = is_f16 ? launch_narrowest<Float16> : launch_narrowest<uint16_t>;
  launch(product, num_sms, stream);
}

}  // namespace tokenmill
