// RMS norms, and the preparation of a product's input: normed where asked, in the weight's type, rows padded with
// zeros.
#include "base/check.h"
#include "ops/cuda/cuda_backend.h"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/launch.cuh"

namespace tokenmill {
namespace {

constexpr int kThreads = 512;

template <class X>
__device__ float rms_scale(const X* x, int64_t cols, float eps) {
  float squares = 0;
  for (int64_t i = threadIdx.x; i < cols; i += blockDim.x) squares += to_float(x[i]) * to_float(x[i]);
  return rsqrtf(block_sum(squares) / static_cast<float>(cols) + eps);
}

// kAdd: out += norm(x). out may be x: every thread reads and writes its own elements.
template <bool kAdd>
__global__ void __launch_bounds__(kThreads)
    rms_norm_kernel(const float* x, int64_t x_stride, int64_t cols, const float* weight, float eps, float* out,
                    int64_t out_stride) {
  x += blockIdx.x * x_stride;
  out += blockIdx.x * out_stride;
  const float scale = rms_scale(x, cols, eps);
  for (int64_t i = threadIdx.x; i < cols; i += blockDim.x) {
    const float value = x[i] * scale * weight[i];
    out[i] = kAdd ? out[i] + value : value;
  }
}

struct PrepareArgs {
  const void* x;  // X
  int64_t x_stride, cols;
  const float* weight;  // null: no norm
  float eps;
  void* out;
  int64_t out_stride;
};

// grid.y blocks share a row where there is no norm. Rows of up to kHeld values a thread are read once.
template <class X, class T>
__global__ void __launch_bounds__(kThreads) prepare_kernel(const PrepareArgs args) {
  constexpr int kHeld = 8;
  const X* const x = static_cast<const X*>(args.x) + blockIdx.x * args.x_stride;
  T* const out = static_cast<T*>(args.out) + blockIdx.x * args.out_stride;
  let_next_start();
  if (args.weight != nullptr && args.out_stride <= kHeld * kThreads) {
    float held[kHeld], weight[kHeld], squares = 0;
#pragma unroll
    for (int u = 0; u < kHeld; ++u) {
      const int i = threadIdx.x + u * kThreads;
      weight[u] = i < args.cols ? args.weight[i] : 0.0f;
    }
    wait_for_previous();
#pragma unroll
    for (int u = 0; u < kHeld; ++u) {
      const int i = threadIdx.x + u * kThreads;
      held[u] = i < args.cols ? to_float(x[i]) : 0.0f;
      squares += held[u] * held[u];
    }
    const float scale = rsqrtf(block_sum(squares) / static_cast<float>(args.cols) + args.eps);
#pragma unroll
    for (int u = 0; u < kHeld; ++u) {
      const int i = threadIdx.x + u * kThreads;
      if (i < args.out_stride) out[i] = from_float<T>(held[u] * scale * weight[u]);
    }
    return;
  }
  wait_for_previous();
  const float scale = args.weight != nullptr ? rms_scale(x, args.cols, args.eps) : 1.0f;
  for (int64_t i = blockIdx.y * int64_t{kThreads} + threadIdx.x; i < args.out_stride;
       i += int64_t{kThreads} * gridDim.y) {
    float value = i < args.cols ? to_float(x[i]) : 0.0f;
    if (args.weight != nullptr && i < args.cols) value = value * scale * args.weight[i];
    out[i] = from_float<T>(value);
  }
}

auto prepare_kernel_for(DType x, DType weight) {
  if (x == DType::kF32) {
    return weight == DType::kF32   ? prepare_kernel<float, float>
           : weight == DType::kF16 ? prepare_kernel<float, Float16>
                                   : prepare_kernel<float, uint16_t>;
  }
  TM_CHECK(x == weight || weight == DType::kF32);
  if (x == DType::kF16) {
    return weight == DType::kF32 ? prepare_kernel<Float16, float> : prepare_kernel<Float16, Float16>;
  }
  return weight == DType::kF32 ? prepare_kernel<uint16_t, float> : prepare_kernel<uint16_t, uint16_t>;
}

}  // namespace

void CudaBackend::rms_norm(Matrix x, const Norm& norm, Matrix out) {
  TM_CHECK(x.rows == out.rows && x.cols == out.cols && x.dtype == DType::kF32 && out.dtype == DType::kF32);
  if (x.rows == 0) return;
  use_device();
  rms_norm_kernel<false><<<static_cast<unsigned>(x.rows), kThreads, 0, stream()>>>(
      x.row<float>(0), x.stride, x.cols, norm.weight, norm.eps, out.row<float>(0), out.stride);
  check_launch("rms_norm");
}

void CudaBackend::add_rms_norm(Matrix x, const Norm& norm, Matrix sum) {
  TM_CHECK(x.rows == sum.rows && x.cols == sum.cols && x.dtype == DType::kF32 && sum.dtype == DType::kF32);
  if (x.rows == 0) return;
  use_device();
  rms_norm_kernel<true><<<static_cast<unsigned>(x.rows), kThreads, 0, stream()>>>(
      x.row<float>(0), x.stride, x.cols, norm.weight, norm.eps, sum.row<float>(0), sum.stride);
  check_launch("add_rms_norm");
}

void CudaBackend::prepare_input(Matrix x, const Norm* norm, const CudaWeight& weight, void* out) {
  const int64_t pieces = norm != nullptr ? 1 : (weight.stride + 4 * kThreads - 1) / (4 * kThreads);
  const dim3 grid(static_cast<unsigned>(x.rows), static_cast<unsigned>(pieces));
  const PrepareArgs args{.x = x.data,
                         .x_stride = x.stride,
                         .cols = x.cols,
                         .weight = norm != nullptr ? norm->weight : nullptr,
                         .eps = norm != nullptr ? norm->eps : 0.0f,
                         .out = out,
                         .out_stride = weight.stride};
  launch_early("prepare_input", prepare_kernel_for(x.dtype, weight.dtype), grid, kThreads, 0, stream(), early_launch_,
               args);
}

}  // namespace tokenmill
