// Weights are the 64-row operand of wgmma, the input's rows the other one; both come by tensor copies into a ring of
// stages that one warp keeps filled.
//
// K is cut into four slices, of which the four blocks of a cluster take one each of a tile of 64 weight rows, so that
// they are summed in the cluster's shared memory and 64 tiles are enough to keep all multiprocessors reading. More than
// 64 rows are many_linear.h's, which goes through the same slices one after the other. Within a slice sums run in order
// of K, and slices are added in their order: a row's bits depend neither on the kernel nor on the other rows.
//
// A gated tile has 32 rows of gate and 32 of up for every 64, which meet where the sums are finished.
#include "ops/cuda/wide_linear.h"

#include <algorithm>

#include "base/check.h"
#include "ops/cuda/activation.cuh"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/hopper.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/many_linear.h"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/slices.cuh"
#include "ops/cuda/tensor_map.h"
#include "ops/cuda/wgmma.cuh"

namespace tokenmill {
namespace {

constexpr int kStagesMax = 8;
// One block a multiprocessor.
constexpr size_t kSharedBytes = size_t{166} << 10;

struct WideArgs {
  CUtensorMap weight, second, x;
  const float *bias, *second_bias;
  int k, n, rows;
  bool gated, rounds_gated, add, aligned_out;
  Activation activation;
  float* out;
  uint16_t* out_half;
  int64_t out_stride;
  int stages;
};

constexpr int kRows = 64, kThreads = 128;            // weight rows of a tile, and threads that multiply
constexpr int kPieces = 2;                           // times 64 of K a stage
constexpr int kWeightBytes = kRows * kPieces * 128;  // [8][kPieces][8][64]

// kTokens rows of input.
template <int kTokensIn>
struct Shape {
  static constexpr int kTokens = kTokensIn;
  static constexpr int kInputBytes = kTokens * kPieces * 128;  // [kPieces][kTokens][64]
  static constexpr int kStageBytes = kWeightBytes + kInputBytes;
  // Floats: a warp's sums fall into 32 banks. A block finishes every fourth row of input: the sums that one block has
  // for another lie together, and as many come from all four.
  static constexpr int kSumStride = kRows + 8;
  static constexpr int kShare = kTokens / kSlices * kSumStride + 8;
  static constexpr int kSums = kSlices * kShare;
  static constexpr size_t kSumBytes = size_t{4} * kSums * 2;
  __device__ static int place_of(int token) { return token % kSlices * kShare + token / kSlices * kSumStride; }
};

#if __CUDA_ARCH_FEAT_SM90_ALL

// Stages of a block in the order in which they are filled and used: its slice of one tile after the other.
struct Walk {
  int tile, tiles, step, piece, begin, end;

  __device__ explicit Walk(const WideArgs& args) {
    const int outputs = args.gated ? kRows / 2 : kRows, slice = static_cast<int>(blockIdx.x % kSlices);
    tiles = (args.n + outputs - 1) / outputs;
    tile = blockIdx.x / kSlices;
    step = gridDim.x / kSlices;
    piece = begin = slice_begin(slice, args.k / 64);
    end = slice_begin(slice + 1, args.k / 64);
  }
  __device__ bool is_over() const { return tile >= tiles || begin == end; }
  __device__ void next_stage() {
    piece += kPieces;
    if (piece < end) return;
    piece = begin;
    tile += step;
  }
};

template <class S>
__device__ void fill_ring(const WideArgs& args, uint32_t ring, uint32_t full, uint32_t empty) {
  const uint64_t often = evict_last_policy(), once = evict_first_policy();
  const auto copy_weights = [&](const Walk& at, int stage) {
    const uint32_t target = ring + stage * S::kStageBytes, barrier = full + 8 * stage;
    expect_bytes(barrier, S::kStageBytes);
    if (args.gated) {
      copy_row_groups(target, &args.weight, at.piece, at.tile * 4, barrier, once);
      copy_row_groups(target + kWeightBytes / 2, &args.second, at.piece, at.tile * 4, barrier, once);
    } else {
      copy_row_groups(target, &args.weight, at.piece, at.tile * 8, barrier, once);
    }
  };
  const auto copy_input = [&](const Walk& at, int stage) {
    copy_box(ring + stage * S::kStageBytes + kWeightBytes, &args.x, 0, at.piece, full + 8 * stage, often);
  };
  Walk weights(args), input(args);
  int ahead = 0;
  for (; ahead < args.stages && !weights.is_over(); ++ahead, weights.next_stage()) copy_weights(weights, ahead);
  wait_for_previous();
  for (int stage = 0; stage < ahead; ++stage, input.next_stage()) copy_input(input, stage);
  Turn turn;
  for (; !weights.is_over(); weights.next_stage(), turn.step(args.stages)) {
    wait_barrier(empty + 8 * turn.stage, turn.parity);
    copy_weights(weights, turn.stage);
    copy_input(weights, turn.stage);
  }
}

// acc = a slice's products.
template <class T, class S>
__device__ void multiply_slice(const WideArgs& args, float (&acc)[S::kTokens / 2], int pieces, uint32_t ring,
                               uint32_t full, uint32_t empty, Turn& at) {
  const bool first_of_warp = threadIdx.x % 32 == 0;
#pragma unroll
  for (float& sum : acc) sum = 0;
  int before = 0;
  for (int piece = 0; piece < pieces; piece += kPieces) {
    wait_barrier(full + 8 * at.stage, at.parity);
    const uint32_t weights = ring + at.stage * S::kStageBytes, input = weights + kWeightBytes;
    pin(acc);
    fence_products();
    multiply_pieces<T, kPieces>(acc, {weights, 1024, kPieces * 1024}, {input, S::kTokens * 128, 1024});
    commit_products();
    wait_products<1>();
    if (first_of_warp && piece > 0) arrive(empty + 8 * before);
    before = at.stage;
    at.step(args.stages);
  }
  wait_products<0>();
  pin(acc);
  if (first_of_warp && pieces > 0) arrive(empty + 8 * before);
}

// The block's sums as [token % 4][token / 4][weight row].
template <class S>
__device__ void put_sums(const float (&acc)[S::kTokens / 2], float* sums) {
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < S::kTokens / 2; ++i) {
    const int token = i / 4 * 8 + 2 * t + i % 2, row = warp * 16 + g + i / 2 % 2 * 8;
    sums[S::place_of(token) + row] = acc[i];
  }
}

__device__ inline float4 plus(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }
__device__ inline float4 plus(float4 a, const float* b) { return {a.x + b[0], a.y + b[1], a.z + b[2], a.w + b[3]}; }

template <class T>
__device__ inline float4 rounded(float4 v) {
  return {rounded_to<T>(v.x), rounded_to<T>(v.y), rounded_to<T>(v.z), rounded_to<T>(v.w)};
}

template <class T>
__device__ inline void write_four(const WideArgs& args, int64_t at, float4 v) {
  if (args.out_half != nullptr) {
    const uint2 bits = {pair_of<T>(v.x, v.y), pair_of<T>(v.z, v.w)};
    if (args.aligned_out) {
      *reinterpret_cast<uint2*>(args.out_half + at) = bits;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) args.out_half[at + i] = (i < 2 ? bits.x : bits.y) >> i % 2 * 16 & 0xffff;
    }
    return;
  }
  float* const out = args.out + at;
  if (args.aligned_out) {
    if (args.add) v = plus(v, __ldcg(reinterpret_cast<const float4*>(out)));
    *reinterpret_cast<float4*>(out) = v;
    return;
  }
  const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) out[i] = args.add ? out[i] + values[i] : values[i];
}

// Writes every fourth row of input. `load` gives four neighbouring sums.
template <class T, class S, class Load>
__device__ void finish_tile(const WideArgs& args, int tile, int rank, Load&& load) {
  const int outputs = args.gated ? kRows / 2 : kRows, quads = outputs / 4;
  const int own = (args.rows - rank + kSlices - 1) / kSlices;
  for (int i = threadIdx.x; i < quads * own; i += kThreads) {
    const int quad = i % quads * 4, token = i / quads * kSlices + rank, col = tile * outputs + quad;
    const int sum = i / quads * S::kSumStride;
    if (col >= args.n) continue;
    const int64_t place = token * args.out_stride + col;
    float4 v;
    if (args.gated) {
      float4 gate = load(sum + quad), up = load(sum + quad + kRows / 2);
      if (args.rounds_gated) {
        gate = rounded<T>(gate);
        up = rounded<T>(up);
      }
      if (args.bias != nullptr) gate = plus(gate, args.bias + col);
      if (args.second_bias != nullptr) up = plus(up, args.second_bias + col);
      v = {activate(args.activation, gate.x) * up.x, activate(args.activation, gate.y) * up.y,
           activate(args.activation, gate.z) * up.z, activate(args.activation, gate.w) * up.w};
    } else {
      v = load(sum + quad);
      if (args.bias != nullptr) v = plus(v, args.bias + col);
    }
    write_four<T>(args, place, v);
  }
}

// A tile of the cluster: every block has the sums of one slice, and finishes a quarter of the input's rows.
//
// Each block copies to each other what that one finishes, and reads its own sums where they are. The copies complete on
// the receiver's barrier, which orders them; before a block sends again, all four have told it that they have read what
// it sent.
template <class T, class S>
__device__ void merge_tile(const WideArgs& args, int tile, const float (&acc)[S::kTokens / 2], float* sums,
                           uint32_t merge_full, uint32_t merge_empty, int round) {
  const int lane = threadIdx.x % 32, rank = blockIdx.x % kSlices;
  float* const received = sums + S::kSums;  // [slice][kShare]
  const auto bytes_for = [&](int block) { return (args.rows - block + kSlices - 1) / kSlices * S::kSumStride * 4; };
  if (round > 0) wait_barrier(merge_empty, (round - 1) & 1);
  put_sums<S>(acc, sums);
  fence_copies();
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
  if (threadIdx.x == 0) expect_bytes(merge_full, (kSlices - 1) * bytes_for(rank));
  if (threadIdx.x < kSlices && threadIdx.x != rank && bytes_for(threadIdx.x) > 0) {
    const int block = threadIdx.x;
    copy_there(cluster_address(shared_address(received + rank * S::kShare), block),
               shared_address(sums + block * S::kShare), bytes_for(block), cluster_address(merge_full, block));
  }
  wait_barrier(merge_full, round & 1);
  finish_tile<T, S>(args, tile, rank, [&](int offset) {
    float4 parts[kSlices];
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) {
      parts[slice] = *reinterpret_cast<const float4*>((slice == rank ? sums : received) + slice * S::kShare + offset);
    }
    return plus(plus(plus(parts[0], parts[1]), parts[2]), parts[3]);
  });
  __syncwarp();
  if (lane < kSlices) hand_back_there(merge_empty, lane);
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <class T, class S>
__global__ void __launch_bounds__(kThreads + 32, 1) wide_kernel(const __grid_constant__ WideArgs args) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ __align__(8) uint64_t barriers[2 * kStagesMax + 2];
  const uint32_t ring = shared_address(shared), full = shared_address(barriers), empty = full + 8 * kStagesMax;
  const uint32_t merge_full = empty + 8 * kStagesMax, merge_empty = merge_full + 8;
  float* const sums = reinterpret_cast<float*>(shared + args.stages * S::kStageBytes);
  let_next_start();
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < args.stages; ++stage) {
      init_barrier(full + 8 * stage, 1);
      init_barrier(empty + 8 * stage, kThreads / 32);
    }
    init_barrier(merge_full, 1);
    init_barrier(merge_empty, 4 * kSlices);
    fence_barriers();
  }
  __syncthreads();
  sync_cluster();
  if (threadIdx.x >= kThreads) {
    if (threadIdx.x % 32 == 0) fill_ring<S>(args, ring, full, empty);
    __syncwarp();
  } else {
    wait_for_previous();
    Walk at(args);
    Turn place;
    for (int round = 0; at.tile < at.tiles; ++round, at.tile += at.step) {
      float acc[S::kTokens / 2];
      multiply_slice<T, S>(args, acc, at.end - at.begin, ring, full, empty, place);
      merge_tile<T, S>(args, at.tile, acc, sums, merge_full, merge_empty, round);
    }
  }
  sync_cluster();  // others may still arrive at this block's barriers
#endif
}

// Clusters that the device holds at a time; depends on how its multiprocessors hang together.
template <class T, class S>
int clusters_max(const cudaLaunchConfig_t& config, int num_sms) {
  static PerDevice known;
  return known.get([&config, num_sms] {
    int found = 0;
    TM_CUDA(cudaOccupancyMaxActiveClusters(&found, wide_kernel<T, S>, &config));
    return std::clamp(found, 1, num_sms / kSlices);
  });
}

template <class T, class S>
void launch(const StreamProduct& product, int num_sms, cudaStream_t stream) {
  const bool gated = product.second != nullptr;
  const int box_rows = gated ? kRows / 2 : kRows;
  WideArgs args{};
  args.weight = row_groups_map(product.weight, product.n, product.k, box_rows, kPieces);
  if (gated) args.second = row_groups_map(product.second, product.n, product.k, box_rows, kPieces);
  args.x = columns_map(product.x, product.rows, product.k, product.x_stride, S::kTokens, kPieces);
  take_over(product, args);
  args.gated = gated;
  args.rounds_gated = product.rounds_gated;
  const uintptr_t out = reinterpret_cast<uintptr_t>(product.out != nullptr ? static_cast<void*>(product.out)
                                                                           : static_cast<void*>(product.out_half));
  args.aligned_out = product.out_stride % 4 == 0 && out % 16 == 0;
  constexpr int kStages = static_cast<int>((kSharedBytes - S::kSumBytes) / S::kStageBytes);
  static_assert(kStages >= 3);
  args.stages = std::min(kStages, kStagesMax);
  const size_t bytes = S::kSumBytes + static_cast<size_t>(args.stages * S::kStageBytes);
  const auto kernel = wide_kernel<T, S>;
  TM_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));

  LaunchConfig launch(static_cast<unsigned>(num_sms / kSlices * kSlices), kThreads + 32, bytes, stream, true, kSlices);
  const int tiles = (args.n + box_rows - 1) / box_rows;
  const int clusters = std::min(tiles, clusters_max<T, S>(launch.config, num_sms));
  launch.config.gridDim.x = static_cast<unsigned>(clusters * kSlices);
  check_cuda(cudaLaunchKernelEx(&launch.config, kernel, args), "wide_linear");
}

using Few = Shape<16>;
using Some = Shape<32>;
using Tens = Shape<64>;

template <class T>
void launch(const StreamProduct& product, int num_sms, cudaStream_t stream) {
  if (product.rows <= 16) return launch<T, Few>(product, num_sms, stream);
  if (product.rows <= 32) return launch<T, Some>(product, num_sms, stream);
  launch<T, Tens>(product, num_sms, stream);
}

}  // namespace

bool can_widen(const StreamProduct& product) {
  static PerDevice is_built;
  if (!has_body(reinterpret_cast<const void*>(wide_kernel<uint16_t, Tens>), is_built)) return false;
  if (product.x_float || product.norm != nullptr) return false;
  return product.k % 64 == 0 && product.n % 8 == 0 && product.n < (int64_t{1} << 31) && product.x_stride % 8 == 0 &&
         reinterpret_cast<uintptr_t>(product.x) % 16 == 0;
}

void launch_wide_product(const StreamProduct& product, int num_sms, cudaStream_t stream) {
  TM_CHECK(product.rows >= 1 && can_widen(product));
  if (product.rows > kWideRowsMax) return launch_sliced_product(product, num_sms, stream);
  if (product.dtype == DType::kF16) return launch<Float16>(product, num_sms, stream);
  launch<uint16_t>(product, num_sms, stream);
}

}  // namespace tokenmill
