// Products whose bits for a row depend on nothing but that row and the weight: deterministic inference where
// wide_linear.h cannot. One sum an output in one order over K, whatever the tile, and so whatever the number of rows.
//
// bf16 and fp16: mma.sync m16n8k16 steps in order of K, which every tile shape here takes alike. fp32: one chain of
// fused multiply-adds. Neither splits K.
#include "base/check.h"
#include "ops/cuda/cuda_backend.h"
#include "ops/cuda/mma.cuh"

namespace tokenmill {
namespace {

struct ProductArgs {
  const void* weight;  // [n, stride]
  const void* x;       // [rows, x_stride], zeros from k to stride
  int64_t stride, x_stride;
  int64_t n, rows;
  bool add;
  float* out;
  int64_t out_stride;
};

// 16 bytes, or zeros.
__device__ inline void copy_async(void* target, const void* source, bool inside) {
  const int bytes = inside ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(target)), "l"(source), "r"(bytes));
}

__device__ inline void store(const ProductArgs& args, int64_t row, int64_t col, float value) {
  if (row >= args.rows || col >= args.n) return;
  float& out = args.out[row * args.out_stride + col];
  out = args.add ? out + value : value;
}

// A block makes [kM, kN] of the output, a warp [kWarpM, kWarpN] of that; kK of K at a time, kStages of them under way.
template <int kM, int kN, int kK, int kWarpM, int kWarpN, int kStages>
struct Tiling {
  static constexpr int kThreads = 32 * (kM / kWarpM) * (kN / kWarpN);
  static constexpr int kStride = kK + 8;  // halves: rows start in different banks
  static constexpr int kStageHalves = (kM + kN) * kStride;
  static constexpr size_t kBytes = size_t{2} * kStages * kStageHalves;

  __device__ static void load(const ProductArgs& args, int64_t row0, int64_t col0, int64_t k0, uint16_t* stage) {
    constexpr int kPieces = kK / 8;
    for (int i = threadIdx.x; i < (kM + kN) * kPieces; i += kThreads) {
      const int line = i / kPieces;
      const int64_t k = k0 + i % kPieces * 8;
      const bool is_x = line < kM;
      const int64_t index = is_x ? row0 + line : col0 + line - kM;
      const bool inside = k < args.stride && index < (is_x ? args.rows : args.n);
      const auto* const base = static_cast<const uint16_t*>(is_x ? args.x : args.weight);
      const int64_t at = index * (is_x ? args.x_stride : args.stride) + k;
      copy_async(stage + line * kStride + i % kPieces * 8, inside ? base + at : base, inside);
    }
    asm volatile("cp.async.commit_group;");
  }
};

template <class T, int kM, int kN, int kK, int kWarpM, int kWarpN, int kStages>
__global__ void __launch_bounds__(Tiling<kM, kN, kK, kWarpM, kWarpN, kStages>::kThreads)
    half_product_kernel(const ProductArgs args) {
  using Tile = Tiling<kM, kN, kK, kWarpM, kWarpN, kStages>;
  constexpr int kRowTiles = kWarpM / 16, kColTiles = kWarpN / 8;
  static_assert(kColTiles % 2 == 0);
  extern __shared__ __align__(16) uint16_t stages[];
  const int64_t row0 = blockIdx.y * int64_t{kM}, col0 = blockIdx.x * int64_t{kN};
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_row = warp / (kN / kWarpN) * kWarpM, warp_col = warp % (kN / kWarpN) * kWarpN;
  const int steps = static_cast<int>((args.stride + kK - 1) / kK);
  float sums[kRowTiles][kColTiles][4] = {};

  for (int s = 0; s < kStages - 1; ++s) Tile::load(args, row0, col0, int64_t{s} * kK, stages + s * Tile::kStageHalves);
  for (int step = 0; step < steps; ++step) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2));
    __syncthreads();
    const int ahead = step + kStages - 1;  // past the end it loads zeros, which nobody reads
    Tile::load(args, row0, col0, int64_t{ahead} * kK, stages + ahead % kStages * Tile::kStageHalves);
    const uint16_t* const x = stages + step % kStages * Tile::kStageHalves;
    const uint16_t* const weight = x + kM * Tile::kStride;
#pragma unroll
    for (int k = 0; k < kK; k += 16) {
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
        load_matrices(a[i], shared_address(x + (warp_row + i * 16 + lane % 16) * Tile::kStride + k + lane / 16 * 8));
      }
#pragma unroll
      for (int j = 0; j < kColTiles; j += 2) {
        uint32_t b[4];
        load_matrices(b, shared_address(weight + (warp_col + j * 8 + lane / 16 * 8 + lane % 8) * Tile::kStride + k +
                                        lane / 8 % 2 * 8));
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
          mma<T>(sums[i][j], a[i][0], a[i][1], a[i][2], a[i][3], b[0], b[1]);
          mma<T>(sums[i][j + 1], a[i][0], a[i][1], a[i][2], a[i][3], b[2], b[3]);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < kColTiles; ++j) {
      const int64_t row = row0 + warp_row + i * 16 + lane / 4, col = col0 + warp_col + j * 8 + lane % 4 * 2;
      store(args, row, col, sums[i][j][0]);
      store(args, row, col + 1, sums[i][j][1]);
      store(args, row + 8, col, sums[i][j][2]);
      store(args, row + 8, col + 1, sums[i][j][3]);
    }
  }
}

template <class T, int kM, int kN, int kK, int kWarpM, int kWarpN, int kStages>
void launch_half(const ProductArgs& args, cudaStream_t stream) {
  using Tile = Tiling<kM, kN, kK, kWarpM, kWarpN, kStages>;
  const auto kernel = half_product_kernel<T, kM, kN, kK, kWarpM, kWarpN, kStages>;
  if (Tile::kBytes > size_t{48} << 10) {
    TM_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(Tile::kBytes)));
  }
  const dim3 grid(static_cast<unsigned>((args.n + kN - 1) / kN), static_cast<unsigned>((args.rows + kM - 1) / kM));
  kernel<<<grid, Tile::kThreads, Tile::kBytes, stream>>>(args);
  check_launch("half_product");
}

// A thread makes kM / 16 x 4 outputs of [kM, 64].
template <int kM>
__global__ void __launch_bounds__(256) f32_product_kernel(const ProductArgs args) {
  constexpr int kN = 64, kK = 16, kRows = kM / 16, kCols = 4;
  __shared__ float x[kK][kM + 1], weight[kK][kN + 1];
  const int64_t row0 = blockIdx.y * int64_t{kM}, col0 = blockIdx.x * int64_t{kN};
  const int thread_row = threadIdx.x / 16, thread_col = threadIdx.x % 16;
  const auto load = [&](const void* source, int64_t stride, int64_t index, int64_t limit, int64_t k) {
    return index < limit && k < args.stride ? static_cast<const float*>(source)[index * stride + k] : 0.0f;
  };
  float sums[kRows][kCols] = {};
  for (int64_t k0 = 0; k0 < args.stride; k0 += kK) {
    __syncthreads();
    for (int i = threadIdx.x; i < kM * kK; i += 256) {
      x[i % kK][i / kK] = load(args.x, args.x_stride, row0 + i / kK, args.rows, k0 + i % kK);
    }
    for (int i = threadIdx.x; i < kN * kK; i += 256) {
      weight[i % kK][i / kK] = load(args.weight, args.stride, col0 + i / kK, args.n, k0 + i % kK);
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kK; ++k) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j < kCols; ++j) {
          sums[i][j] = fmaf(x[k][thread_row + i * 16], weight[k][thread_col + j * 16], sums[i][j]);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int j = 0; j < kCols; ++j) {
      store(args, row0 + thread_row + i * 16, col0 + thread_col + j * 16, sums[i][j]);
    }
  }
}

template <class T>
void launch_half(const ProductArgs& args, cudaStream_t stream) {
  if (args.rows <= 16) return launch_half<T, 16, 64, 64, 16, 16, 4>(args, stream);
  if (args.rows <= 64) return launch_half<T, 64, 64, 64, 32, 32, 3>(args, stream);
  launch_half<T, 128, 128, 32, 64, 32, 3>(args, stream);
}

template <int kM>
void launch_f32(const ProductArgs& args, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((args.n + 63) / 64), static_cast<unsigned>((args.rows + kM - 1) / kM));
  f32_product_kernel<kM><<<grid, 256, 0, stream>>>(args);
  check_launch("f32_product");
}

}  // namespace

void CudaBackend::invariant_product(const CudaWeight& weight, PreparedInput x, int64_t rows, bool add, Matrix out) {
  const ProductArgs args{.weight = weight.memory.data(),
                         .x = x.data,
                         .stride = weight.stride,
                         .x_stride = x.stride,
                         .n = weight.n,
                         .rows = rows,
                         .add = add,
                         .out = out.row<float>(0),
                         .out_stride = out.stride};
  if (weight.is_float()) return rows <= 16 ? launch_f32<16>(args, stream()) : launch_f32<64>(args, stream());
  if (weight.dtype == DType::kF16) return launch_half<Float16>(args, stream());
  launch_half<uint16_t>(args, stream());
}

}  // namespace tokenmill
