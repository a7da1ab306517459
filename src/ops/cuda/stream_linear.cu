// One block a multiprocessor, each with tiles of 16 weight rows (gated: 8 of gate and 8 of up) of its own. One thread
// keeps a ring of stages filled by tensor copies of weights [16][kPiece], another brings the pieces [rows][kPiece] of a
// 16-bit input beside them. Eight warps multiply, weights as the 16-row operand and up to eight input rows as the
// other, every warp a part of the stage's K; their sums meet in shared memory at the end of a tile.
//
// The next kernel's blocks come as soon as there is room, and fill their ring before this one has ended. What was
// slower: letting them come only when the last weights are under way; rings so small that two such blocks fit one
// multiprocessor; prefetching weights into L2 other than kAhead stages.
//
// Within a mma's 16 K the order of K is free so long as both operands agree: lane (g, t) takes 16 neighbouring bytes of
// its row, for two mmas, instead of the pieces of 4 bytes the instruction is described with.
#include "ops/cuda/stream_linear.h"

#include <algorithm>

#include "base/check.h"
#include "ops/cuda/activation.cuh"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/hopper.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/tensor_map.h"

namespace tokenmill {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;  // that multiply
constexpr int kTileRows = 16;
constexpr int kStagesMax = 16;
// Stages of weights that a block has under way, though its ring holds more: what is asked for beyond the memory's rate
// waits in queues that everything else, such as the input, waits behind. Two are too few, four no better.
constexpr int kFlight = 3;
// Stages fetched into the L2 cache while a full ring waits for the input, as the output product's for attention.
constexpr int kAhead = 4;
// More than half of a multiprocessor's, so that two of these blocks never share one and leave another without; and
// little enough for a block of attention's beside it.
constexpr size_t kSharedBytes = size_t{154} << 10;

enum class Input { kRounded, kFloat, kNormed };

struct StreamArgs {
  CUtensorMap weight, second, x;  // boxes [rows][kPiece / 64][64]; x: kRounded only
  const float *bias, *second_bias;
  const float* x_float;
  int64_t x_stride;
  const float* norm;
  float eps;
  int k, n, rows;
  bool add;
  Activation activation;
  float* out;
  uint16_t* out_half;
  int64_t out_stride;
  int stages, stage_bytes;
  int flight;  // stages of weights under way at most
  int ahead;   // stages fetched into the L2 cache while the ring is full
};

// One warp for weights, and one for the input where it is copied.
template <Input kInput>
constexpr int kBlockThreads = kThreads + (kInput == Input::kRounded ? 64 : 32);

[[maybe_unused]] __device__ inline void sync_multipliers() {
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
}

// Between the warp that makes the barriers and those that use them: it goes on to the first weights at once, and who
// waits for the input needs no barrier before that is there.
template <Input kInput>
__device__ void arrive_with_barriers() {
  asm volatile("bar.arrive 2, %0;" ::"n"(kBlockThreads<kInput>) : "memory");
}
template <Input kInput>
__device__ void wait_for_barriers() {
  asm volatile("bar.sync 2, %0;" ::"n"(kBlockThreads<kInput>) : "memory");
}

// Rows of fp32 input in shared memory: an odd multiple of 64 bytes, so that neighbours lie in different banks.
__host__ __device__ inline int float_row_bytes(int k) { return k * 2 + 64; }

#if __CUDA_ARCH__ >= 900

// Of a stage's weights, its input, and its being free again.
struct Barriers {
  uint32_t full, came, empty;
};

// A block's stages in their order: the pieces of its tiles.
struct Walk {
  int pieces, total;
  __device__ Walk(int tiles, int pieces) : pieces(pieces) {
    const int own = static_cast<int>(blockIdx.x) < tiles ? (tiles - 1 - blockIdx.x) / gridDim.x + 1 : 0;
    total = own * pieces;
  }
};

// How soon a copy follows the one that made room for it decides the rate: the thread has what comes next at hand.
template <int kPiece, bool kGated>
class WeightFiller {
 public:
  __device__ WeightFiller(const StreamArgs& args, uint32_t ring, const Barriers& barriers, const Walk& walk)
      : args_(args),
        ring_(ring),
        barriers_(barriers),
        pieces_(walk.pieces * kMapPieces),
        left_(walk.total),
        next_{0, static_cast<int>(blockIdx.x) * kBoxRows},
        once_(evict_first_policy()) {}

  __device__ void fill() {
    const int total = left_, flight = min(total, min(args_.flight, args_.stages));
    while (left_ > total - flight) copy_next();
    Turn arriving;
    // The first round finds all stages free.
    while (left_ > max(total - args_.stages, 0)) {
      wait_barrier(barriers_.full + 8 * arriving.stage, arriving.parity);
      arriving.step(args_.stages);
      copy_next();
    }
    if (left_ > 0 && !has_ended(barriers_.empty, 0)) fetch_ahead();
    while (left_ > 0) {
      wait_barrier(barriers_.empty + 8 * turn_.stage, turn_.parity ^ 1);
      wait_barrier(barriers_.full + 8 * arriving.stage, arriving.parity);
      arriving.step(args_.stages);
      copy_next();
    }
  }

 private:
  static constexpr int kWeightBytes = kTileRows * kPiece * 2, kMapPieces = kPiece / 64;
  static constexpr int kBoxRows = kGated ? kTileRows / 2 : kTileRows;
  struct Box {
    int piece, row;
  };

  __device__ void step(Box& box) const {
    box.piece += kMapPieces;
    if (box.piece < pieces_) return;
    box.piece = 0;
    box.row += gridDim.x * kBoxRows;
  }

  // The ring is full and the input is not there: the memory would have nothing to do.
  __device__ void fetch_ahead() const {
    Box box = next_;
    for (int i = min(left_, args_.ahead); i > 0; --i) {
      prefetch_box(&args_.weight, box.piece, box.row);
      if constexpr (kGated) prefetch_box(&args_.second, box.piece, box.row);
      step(box);
    }
  }

  __device__ void copy_next() {
    const uint32_t target = ring_ + turn_.stage * args_.stage_bytes, barrier = barriers_.full + 8 * turn_.stage;
    expect_bytes(barrier, kWeightBytes);
    copy_box(target, &args_.weight, next_.piece, next_.row, barrier, once_);
    if constexpr (kGated) copy_box(target + kWeightBytes / 2, &args_.second, next_.piece, next_.row, barrier, once_);
    turn_.step(args_.stages);
    step(next_);
    --left_;
  }

  const StreamArgs& args_;
  const uint32_t ring_;
  const Barriers barriers_;
  const int pieces_;
  int left_;
  Box next_;
  Turn turn_;
  const uint64_t once_;
};

template <int kPiece>
__device__ void fill_inputs(const StreamArgs& args, uint32_t ring, const Barriers& barriers, const Walk& walk) {
  const uint64_t often = evict_last_policy();
  wait_for_previous();
  Turn turn;
  int piece = 0;
  for (int i = 0; i < walk.total; ++i) {
    wait_barrier(barriers.empty + 8 * turn.stage, turn.parity ^ 1);
    const uint32_t barrier = barriers.came + 8 * turn.stage;
    expect_bytes(barrier, args.rows * kPiece * 2);
    copy_box(ring + turn.stage * args.stage_bytes + kTileRows * kPiece * 2, &args.x, piece * (kPiece / 64), 0, barrier,
             often);
    turn.step(args.stages);
    if (++piece == walk.pieces) piece = 0;
  }
}

__device__ inline float squares(float4 v) { return v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w; }

// Waits for the fp32 input; puts it, normed where asked, rounded into shared memory.
template <class T, Input kInput>
__device__ void round_input(const StreamArgs& args, uint8_t* target) {
  constexpr int kHeld = kStreamFloatColsMax / 4 / kThreads, kRows = kStreamFloatRowsMax;
  __shared__ float sums[kRows][kWarps];
  float4 weights[kHeld];
  if constexpr (kInput == Input::kNormed) {
#pragma unroll
    for (int u = 0; u < kHeld; ++u) {
      const int i = threadIdx.x + u * kThreads;
      weights[u] = i < args.k / 4 ? reinterpret_cast<const float4*>(args.norm)[i] : float4{};
    }
  }
  wait_for_previous();
  float4 held[kRows][kHeld];
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
    const float4* const x = reinterpret_cast<const float4*>(args.x_float + m * args.x_stride);
#pragma unroll
    for (int u = 0; u < kHeld; ++u) {
      const int i = threadIdx.x + u * kThreads;
      held[m][u] = m < args.rows && i < args.k / 4 ? __ldcg(x + i) : float4{};
    }
  }
  if constexpr (kInput == Input::kNormed) {
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      float sum = 0;
#pragma unroll
      for (int u = 0; u < kHeld; ++u) sum += squares(held[m][u]);
      sum = warp_sum(sum);
      if (threadIdx.x % 32 == 0) sums[m][threadIdx.x / 32] = sum;
    }
    sync_multipliers();
  }
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
    if (m >= args.rows) break;
    float scale = 1;
    if constexpr (kInput == Input::kNormed) {
      float sum = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += sums[m][w];
      scale = rsqrtf(sum / static_cast<float>(args.k) + args.eps);
    }
#pragma unroll
    for (int u = 0; u < kHeld; ++u) {
      const int i = threadIdx.x + u * kThreads;
      if (i >= args.k / 4) continue;
      float4 v = held[m][u];
      if constexpr (kInput == Input::kNormed) {
        const float4 w = weights[u];
        v = {v.x * scale * w.x, v.y * scale * w.y, v.z * scale * w.z, v.w * scale * w.w};
      }
      *reinterpret_cast<uint2*>(target + m * float_row_bytes(args.k) + i * 8) = {pair_of<T>(v.x, v.y),
                                                                                 pair_of<T>(v.z, v.w)};
    }
  }
  sync_multipliers();
}

// A tile's outputs, those of all input rows, are dealt out to the threads.
template <int kBlocks>
constexpr int kOwnCells = (kTileRows * 8 * kBlocks + kThreads - 1) / kThreads;

// What a tile is added to: read as the tile begins, so that nothing waits for it at the end.
template <int kBlocks>
__device__ void load_outputs(const StreamArgs& args, int tile, float (&before)[kOwnCells<kBlocks>]) {
  if (!args.add) return;
#pragma unroll
  for (int u = 0; u < kOwnCells<kBlocks>; ++u) {
    const int cell = threadIdx.x + u * kThreads, col = tile * kTileRows + cell % kTileRows;
    if (cell >= kTileRows * args.rows || col >= args.n) continue;
    before[u] = __ldcg(args.out + cell / kTileRows * args.out_stride + col);
  }
}

// Adds the warps' sums [warp][row][16], and writes the tile.
template <class T, int kBlocks, bool kGated>
__device__ void finish_tile(const StreamArgs& args, int tile, const float* sums,
                            const float (&before)[kOwnCells<kBlocks>]) {
  constexpr int kCells = kTileRows * 8 * kBlocks;
  const int cells = kTileRows * args.rows;
#pragma unroll
  for (int u = 0; u < kOwnCells<kBlocks>; ++u) {
    const int cell = threadIdx.x + u * kThreads;
    if (cell / 32 * 32 >= cells) break;  // whole warps: there is a shuffle below
    float value = 0;
    if (cell < cells) {
#pragma unroll
      for (int w = 0; w < kWarps; ++w) value += sums[w * kCells + cell];
    }
    const int row = cell / kTileRows, i = cell % kTileRows;
    if constexpr (kGated) {
      float up = __shfl_down_sync(0xffffffffu, value, 8);  // of the same input row
      const int col = tile * 8 + i;
      if (cell >= cells || i >= 8 || col >= args.n) continue;
      if (args.out_half != nullptr) {  // as products of more rows are
        value = rounded_to<T>(value);
        up = rounded_to<T>(up);
      }
      if (args.bias != nullptr) value += args.bias[col];
      if (args.second_bias != nullptr) up += args.second_bias[col];
      value = activate(args.activation, value) * up;
      if (args.out_half != nullptr) {
        reinterpret_cast<T*>(args.out_half)[row * args.out_stride + col] = from_float<T>(value);
      } else {
        args.out[row * args.out_stride + col] = value;
      }
    } else {
      const int col = tile * kTileRows + i;
      if (cell >= cells || col >= args.n) continue;
      if (args.bias != nullptr) value += args.bias[col];
      args.out[row * args.out_stride + col] = args.add ? before[u] + value : value;
    }
  }
}

#endif  // __CUDA_ARCH__ >= 900

// kBlocks blocks of eight input rows.
template <class T, int kBlocks, int kPiece, bool kGated, Input kInput>
__global__ void __launch_bounds__(kBlockThreads<kInput>) stream_kernel(const __grid_constant__ StreamArgs args) {
#if __CUDA_ARCH__ >= 900
  constexpr int kWeightBytes = kTileRows * kPiece * 2, kRowBytes = kPiece * 2;
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ __align__(8) uint64_t barrier_words[3 * kStagesMax];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t ring = shared_address(shared), words = shared_address(barrier_words);
  const Barriers barriers{words, words + 8 * kStagesMax, words + 16 * kStagesMax};
  constexpr int kOutputs = kGated ? kTileRows / 2 : kTileRows;
  const int tiles = (args.n + kOutputs - 1) / kOutputs, pieces = (args.k + kPiece - 1) / kPiece;
  const Walk walk(tiles, pieces);
  let_next_start();
  if (warp == kWarps) {
    if (lane < args.stages) {
      init_barrier(barriers.full + 8 * lane, 1);
      init_barrier(barriers.came + 8 * lane, 1);
      init_barrier(barriers.empty + 8 * lane, kWarps);
      fence_barriers();
    }
    __syncwarp();
    arrive_with_barriers<kInput>();
    if (lane == 0) WeightFiller<kPiece, kGated>(args, ring, barriers, walk).fill();
    return;
  }
  if (kInput == Input::kRounded && warp > kWarps) {
    wait_for_barriers<kInput>();
    if (lane == 0) fill_inputs<kPiece>(args, ring, barriers, walk);
    return;
  }
  uint8_t* const input = shared + args.stages * args.stage_bytes;
  const int input_row = float_row_bytes(args.k);
  constexpr int kSums = kWarps * kBlocks * 8 * kTileRows;
  float* const first_sums = reinterpret_cast<float*>(input + (kInput == Input::kRounded ? 0 : args.rows * input_row));
  if constexpr (kInput == Input::kRounded) {
    wait_for_previous();
  } else {
    round_input<T, kInput>(args, input);
  }
  wait_for_barriers<kInput>();

  const int g = lane / 4, t = lane % 4;
  float* sums = first_sums;
  int stage = 0, parity = 0;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    float own[kBlocks][4] = {}, before[kOwnCells<kBlocks>] = {};
    if constexpr (!kGated) load_outputs<kBlocks>(args, tile, before);
    for (int piece = 0; piece < pieces; ++piece) {
      const int steps = min(kPiece, args.k - piece * kPiece) / 32;
      wait_barrier(barriers.full + 8 * stage, parity);
      if constexpr (kInput == Input::kRounded) wait_barrier(barriers.came + 8 * stage, parity);
      const uint32_t a_row = ring + stage * args.stage_bytes + g * kRowBytes;
      const uint32_t b_row = kInput == Input::kRounded
                                 ? a_row + kWeightBytes
                                 : shared_address(input) + g * input_row + piece * kPiece * 2 + t * 16;
#pragma unroll 4
      for (int step = warp; step < steps; step += kWarps) {
        // As the copies swizzle: 16-byte chunks within 128 bytes by the number of the 128 bytes.
        const int line = step / 2, number = g * (kPiece / 64) + line;
        const uint32_t at = line * 128 + (((step % 2 * 4 + t) ^ (number & 7)) * 16);
        const uint4 low = load_shared16(a_row + at), high = load_shared16(a_row + 8 * kRowBytes + at);
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
          uint4 x{};
          if (block * 8 + g < args.rows) {
            x = load_shared16(kInput == Input::kRounded ? b_row + block * 8 * kRowBytes + at
                                                        : b_row + block * 8 * input_row + step * 64);
          }
          mma<T>(own[block], low.x, high.x, low.y, high.y, x.x, x.y);
          mma<T>(own[block], low.z, high.z, low.w, high.w, x.z, x.w);
        }
      }
      __syncwarp();
      if (lane == 0) arrive(barriers.empty + 8 * stage);
      if (++stage == args.stages) {
        stage = 0;
        parity ^= 1;
      }
    }
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      float* const target = sums + (warp * kBlocks + block) * 8 * kTileRows + 2 * t * kTileRows + g;
      target[0] = own[block][0];
      target[kTileRows] = own[block][1];
      target[8] = own[block][2];
      target[kTileRows + 8] = own[block][3];
    }
    sync_multipliers();
    finish_tile<T, kBlocks, kGated>(args, tile, sums, before);
    sums = sums == first_sums ? first_sums + kSums : first_sums;  // the others are still read
  }
#endif
}

struct Layout {
  int stages = 0, stage_bytes = 0;
  size_t bytes = 0;
};

Layout layout_of(const StreamProduct& product, int blocks, int piece) {
  Layout layout;
  const size_t sums = size_t{2} * kWarps * blocks * 8 * kTileRows * 4;
  const size_t input = product.x_float ? size_t{1} * product.rows * float_row_bytes(static_cast<int>(product.k)) : 0;
  const int stage = kTileRows * piece * 2 + (product.x_float ? 0 : product.rows * piece * 2);
  layout.stage_bytes = (stage + 1023) / 1024 * 1024;
  const size_t fixed = sums + input, stage_bytes = static_cast<size_t>(layout.stage_bytes);
  // Never fewer than four stages, at the price of overlap.
  const size_t stages = fixed < kSharedBytes ? (kSharedBytes - fixed) / stage_bytes : 0;
  layout.stages = static_cast<int>(std::clamp<size_t>(stages, 4, kStagesMax));
  layout.bytes = fixed + stage_bytes * static_cast<size_t>(layout.stages);
  return layout;
}

template <class T, int kBlocks, int kPiece, bool kGated, Input kInput>
void launch(const StreamProduct& product, int num_sms, cudaStream_t stream) {
  const Layout layout = layout_of(product, kBlocks, kPiece);
  const int rows = kGated ? 8 : kTileRows;
  StreamArgs args{};
  args.weight = pieces_map(product.weight, product.n, product.k, product.k, rows, kPiece / 64);
  if (kGated) args.second = pieces_map(product.second, product.n, product.k, product.k, rows, kPiece / 64);
  if (kInput == Input::kRounded) {
    args.x = pieces_map(product.x, product.rows, product.k, product.x_stride, product.rows, kPiece / 64);
  } else {
    args.x_float = static_cast<const float*>(product.x);
  }
  take_over(product, args);
  args.x_stride = product.x_stride;
  args.norm = product.norm;
  args.eps = product.eps;
  args.stages = layout.stages;
  args.stage_bytes = layout.stage_bytes;
  args.flight = kBlocks == 1 ? kFlight : layout.stages;
  args.ahead = kBlocks == 1 ? kAhead : 0;
  const auto kernel = stream_kernel<T, kBlocks, kPiece, kGated, kInput>;
  TM_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(layout.bytes)));
  launch_early<StreamArgs>("stream_linear", kernel, dim3(static_cast<unsigned>(num_sms)), dim3(kBlockThreads<kInput>),
                           layout.bytes, stream, true, args);
}

template <class T, bool kGated>
void launch(const StreamProduct& product, int num_sms, cudaStream_t stream) {
  if (product.x_float && product.norm != nullptr)
    return launch<T, 1, 512, kGated, Input::kNormed>(product, num_sms, stream);
  if (product.x_float) return launch<T, 1, 512, kGated, Input::kFloat>(product, num_sms, stream);
  if (product.rows <= 8) return launch<T, 1, 512, kGated, Input::kRounded>(product, num_sms, stream);
  if (product.rows <= 16) return launch<T, 2, 512, kGated, Input::kRounded>(product, num_sms, stream);
  launch<T, 4, 256, kGated, Input::kRounded>(product, num_sms, stream);
}

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace

bool can_stream(const StreamProduct& product) {
  static PerDevice is_built;
  const auto kernel = stream_kernel<uint16_t, 1, 512, false, Input::kRounded>;
  if (!has_body(reinterpret_cast<const void*>(kernel), is_built)) return false;
  if (product.rows > kStreamRowsMax || product.k % 64 != 0 || product.n >= (int64_t{1} << 31)) return false;
  if (!is_aligned(product.x)) return false;
  if (!product.x_float) return product.norm == nullptr && product.x_stride % 8 == 0;
  return product.rows <= kStreamFloatRowsMax && product.k <= kStreamFloatColsMax && product.x_stride % 4 == 0 &&
         is_aligned(product.norm);
}

void launch_stream_product(const StreamProduct& product, int num_sms, cudaStream_t stream) {
  TM_CHECK(product.rows >= 1 && can_stream(product));
  const bool is_f16 = product.dtype == DType::kF16;
  const auto run = product.second != nullptr ? is_f16 ? launch<Float16, true> : launch<uint16_t, true>
                   : is_f16 ? launch<Float16, false>
                                             : launch<uint16_t, false>;
  run(product, num_sms, stream);
}

}  // namespace tokenmill
