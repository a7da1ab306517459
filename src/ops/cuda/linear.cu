// Products with weights: stream_linear.h for few rows, split_linear.h and tens_linear.h for some more and many_linear.h
// for gated layers of many where they can, else for very few the plain streaming kernel of gemv.cuh, and cuBLAS. In
// deterministic inference wide_linear.h where it can. Sums in fp32.
#include <algorithm>
#include <type_traits>

#include "base/check.h"
#include "ops/cuda/activation.cuh"
#include "ops/cuda/cuda_backend.h"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/gemv.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/many_linear.h"
#include "ops/cuda/split_linear.h"
#include "ops/cuda/stream_linear.h"
#include "ops/cuda/tens_linear.h"
#include "ops/cuda/wide_linear.h"

namespace tokenmill {
namespace {

constexpr int64_t kRoundRowsMax = 2;                      // so few rows are rounded by the streaming kernel itself
constexpr int64_t kProductFloatsMax = int64_t{64} << 20;  // of one of a gated layer's two products

__global__ void add_bias_kernel(float* out, int64_t stride, int64_t cols, const float* bias) {
  const int64_t col = blockIdx.x * int64_t{256} + threadIdx.x;
  if (col < cols) out[blockIdx.y * stride + col] += bias[col];
}

template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Run {
  T values[kCount];
};

// A product that cuBLAS has rounded: beyond fp16's range it is infinite there.
template <class P>
__device__ inline float product_of(P value) {
  const float product = to_float(value);
  return std::is_same_v<P, Float16> && isinf(product) ? copysignf(65504.0f, product) : product;
}

// out = act(gate) * up; gate and up [rows, cols].
template <class P, class T>
__global__ void gate_kernel(const P* gate, const P* up, int64_t cols, const float* gate_bias, const float* up_bias,
                            Activation activation, T* out, int64_t out_stride) {
  constexpr int kCount = 16 / sizeof(P);
  const int64_t row = blockIdx.y, first = (blockIdx.x * int64_t{256} + threadIdx.x) * kCount;
  const auto value = [&](int64_t col, P gate_value, P up_value) {
    const float g = product_of(gate_value) + (gate_bias != nullptr ? gate_bias[col] : 0.0f);
    const float u = product_of(up_value) + (up_bias != nullptr ? up_bias[col] : 0.0f);
    return from_float<T>(activate(activation, g) * u);
  };
  gate += row * cols;
  up += row * cols;
  out += row * out_stride;
  if (cols % kCount == 0 && out_stride % kCount == 0 &&
      reinterpret_cast<uintptr_t>(out) % sizeof(Run<T, kCount>) == 0) {
    if (first >= cols) return;
    const auto a = *reinterpret_cast<const Run<P, kCount>*>(gate + first);
    const auto b = *reinterpret_cast<const Run<P, kCount>*>(up + first);
    Run<T, kCount> c;
#pragma unroll
    for (int i = 0; i < kCount; ++i) c.values[i] = value(first + i, a.values[i], b.values[i]);
    *reinterpret_cast<Run<T, kCount>*>(out + first) = c;
    return;
  }
  for (int64_t col = first; col < min(first + kCount, cols); ++col) out[col] = value(col, gate[col], up[col]);
}

constexpr int64_t kGridYMax = 65535;

dim3 cell_grid(int64_t rows, int64_t cols, int64_t per_thread = 1) {
  const int64_t per_block = 256 * per_thread;
  return dim3(static_cast<unsigned>((cols + per_block - 1) / per_block), static_cast<unsigned>(rows));
}

cudaDataType_t cublas_type(DType dtype) {
  return dtype == DType::kF32 ? CUDA_R_32F : dtype == DType::kF16 ? CUDA_R_16F : CUDA_R_16BF;
}

const uint16_t* bits_of(const CudaWeight& weight) { return reinterpret_cast<const uint16_t*>(weight.memory.data()); }

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace

// Row-major out [rows, n] is column-major [n, rows]: out^T = W x^T. Without the bias.
void CudaBackend::gemm(const CudaWeight& weight, PreparedInput x, int64_t rows, bool add, Matrix out) {
  if (deterministic_) {
    TM_CHECK(out.dtype == DType::kF32);
    return invariant_product(weight, x, rows, add, out);
  }
  const float alpha = 1, beta = add ? 1.0f : 0.0f;
  const cudaDataType_t type = cublas_type(weight.dtype), out_type = cublas_type(out.dtype);
  const cublasComputeType_t compute = weight.is_float() ? CUBLAS_COMPUTE_32F_PEDANTIC : CUBLAS_COMPUTE_32F;
  TM_CUBLAS(cublasGemmEx(cublas_->get(), CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(weight.n), static_cast<int>(rows),
                         static_cast<int>(weight.stride), &alpha, weight.memory.data(), type,
                         static_cast<int>(weight.stride), x.data, type, static_cast<int>(x.stride), &beta, out.data,
                         out_type, static_cast<int>(out.stride), compute, CUBLAS_GEMM_DEFAULT));
}

CudaBackend::PreparedInput CudaBackend::input_of(Matrix x, const Norm* norm, const CudaWeight& weight) {
  const bool is_ready = x.dtype == weight.dtype && norm == nullptr && !weight.is_float() && weight.stride == weight.k &&
                        x.stride % 8 == 0 && is_aligned(x.data);
  if (is_ready) return {x.data, x.stride};
  const size_t bytes = static_cast<size_t>(x.rows * weight.stride) * size_of(weight.dtype);
  std::byte* const prepared = input_.get<std::byte>(bytes, stream());
  prepare_input(x, norm, weight, prepared);
  return {prepared, weight.stride};
}

bool CudaBackend::stream_product(Matrix x, const Norm* norm, const CudaWeight& weight, const CudaWeight* second,
                                 Activation activation, bool add, Matrix out) {
  if (!early_launch_ || weight.is_float() || weight.stride != weight.k) return false;
  StreamProduct product{.weight = bits_of(weight),
                        .second = second != nullptr ? bits_of(*second) : nullptr,
                        .bias = weight.bias,
                        .second_bias = second != nullptr ? second->bias : nullptr,
                        .n = weight.n,
                        .k = weight.k,
                        .rows = static_cast<int>(x.rows),
                        .x = x.data,
                        .x_float = x.dtype == DType::kF32,
                        .x_stride = x.stride,
                        .norm = norm != nullptr ? norm->weight : nullptr,
                        .eps = norm != nullptr ? norm->eps : 0.0f,
                        .add = add,
                        .activation = activation,
                        .rounds_gated = !deterministic_,
                        .out = out.dtype == DType::kF32 ? out.row<float>(0) : nullptr,
                        .out_half = out.dtype != DType::kF32 ? out.row<uint16_t>(0) : nullptr,
                        .out_stride = out.stride,
                        .dtype = weight.dtype};
  StreamProduct ready = product;  // as input_of() leaves it
  ready.x = nullptr;
  ready.x_float = false;
  ready.x_stride = weight.stride;
  ready.norm = nullptr;
  const bool widens = (deterministic_ || x.rows <= wide_rows_max_) && can_widen(ready);
  const bool are_tens = !deterministic_ && x.rows <= tens_rows_max_;
  const bool splits = are_tens && can_split(ready, num_sms_), is_tens = are_tens && can_take_tens(ready);
  const bool streams = x.rows <= stream_rows_max_ && !(x.rows >= tens_rows_min_ && (splits || is_tens));
  const bool is_many =
      !deterministic_ && x.rows >= many_rows_min_ && weight.k >= many_k_min_ && can_take_many(ready, num_sms_);
  if (streams && can_stream(product)) {
    launch_stream_product(product, num_sms_, stream());
    return true;
  }
  if (!widens && !splits && !is_tens && !is_many && !(streams && can_stream(ready))) return false;
  const PreparedInput prepared = input_of(x, norm, weight);
  ready.x = prepared.data;
  ready.x_stride = prepared.stride;
  if (streams && can_stream(ready)) {
    launch_stream_product(ready, num_sms_, stream());
  } else if (widens) {
    launch_wide_product(ready, num_sms_, stream());
  } else if (splits) {
    launch_split_product(ready, num_sms_, stream());
  } else if (is_tens) {
    launch_tens_product(ready, num_sms_, stream());
  } else {
    launch_many_product(ready, num_sms_, stream());
  }
  return true;
}

void CudaBackend::linear(const LinearArgs& args) {
  const auto& weight = static_cast<const CudaWeight&>(*args.weight);
  TM_CHECK(args.x.cols == weight.k && args.out.cols == weight.n && args.x.rows == args.out.rows);
  TM_CHECK(args.out.dtype == DType::kF32);
  TM_CHECK(args.x.dtype == DType::kF32 || (args.x.dtype == weight.dtype && args.input_norm == nullptr));
  const int64_t rows = args.x.rows;
  if (rows == 0) return;
  TM_CHECK(rows <= kGridYMax);
  use_device();
  if (stream_product(args.x, args.input_norm, weight, nullptr, Activation::kSilu, args.add_to_out, args.out)) return;
  // Whole and aligned fp32 rows go to the plain streaming kernel as they are.
  const bool as_is = args.x.dtype == DType::kF32 && !weight.is_float() && args.input_norm == nullptr &&
                     rows <= std::min<int64_t>(kRoundRowsMax, gemv_rows_max_) && weight.stride == weight.k &&
                     args.x.stride % 4 == 0 && is_aligned(args.x.data);
  PreparedInput x{args.x.data, args.x.stride};
  if (!as_is) x = input_of(args.x, args.input_norm, weight);
  if (rows > gemv_rows_max_) {
    gemm(weight, x, rows, args.add_to_out, args.out);
    if (weight.bias == nullptr) return;
    add_bias_kernel<<<cell_grid(rows, weight.n), 256, 0, stream()>>>(args.out.row<float>(0), args.out.stride, weight.n,
                                                                     weight.bias);
    return check_launch("add_bias");
  }
  const GemvArgs gemv{.weight = weight.memory.data(),
                      .second = nullptr,
                      .bias = weight.bias,
                      .second_bias = nullptr,
                      .x = x.data,
                      .x_stride = x.stride,
                      .stride = weight.stride,
                      .n = weight.n,
                      .rows = static_cast<int>(rows),
                      .add = args.add_to_out,
                      .activation = Activation::kSilu,
                      .out = args.out.row<float>(0),
                      .out_half = nullptr,
                      .out_stride = args.out.stride};
  const bool is_f16 = weight.dtype == DType::kF16;
  const auto launch = weight.is_float() ? launch_gemv<float, float, false>
                      : as_is  ? is_f16 ? launch_gemv<Float16, float, false> : launch_gemv<uint16_t, float, false>
                       : is_f16 ? launch_gemv<Float16, Float16, false>
                               : launch_gemv<uint16_t, uint16_t, false>;
  launch(gemv, stream(), early_launch_);
}

void CudaBackend::gated_linear(const GatedLinearArgs& args) {
  const auto& gate = static_cast<const CudaWeight&>(*args.gate);
  const auto& up = static_cast<const CudaWeight&>(*args.up);
  TM_CHECK(args.x.cols == gate.k && gate.k == up.k && gate.n == up.n && gate.dtype == up.dtype);
  TM_CHECK(args.out.cols == gate.n && args.x.rows == args.out.rows);
  TM_CHECK(args.x.dtype == DType::kF32);
  TM_CHECK(args.out.dtype == DType::kF32 || args.out.dtype == gate.dtype);
  const int64_t rows = args.x.rows;
  if (rows == 0) return;
  use_device();
  if (stream_product(args.x, args.input_norm, gate, &up, args.activation, false, args.out)) return;
  const PreparedInput x = input_of(args.x, args.input_norm, gate);
  if (rows <= gemv_rows_max_) {
    const GemvArgs gemv{.weight = gate.memory.data(),
                        .second = up.memory.data(),
                        .bias = gate.bias,
                        .second_bias = up.bias,
                        .x = x.data,
                        .x_stride = x.stride,
                        .stride = gate.stride,
                        .n = gate.n,
                        .rows = static_cast<int>(rows),
                        .add = false,
                        .activation = args.activation,
                        .out = args.out.dtype == DType::kF32 ? args.out.row<float>(0) : nullptr,
                        .out_half = args.out.dtype != DType::kF32 ? args.out.row<uint16_t>(0) : nullptr,
                        .out_stride = args.out.stride};
    const auto launch = gate.is_float()             ? launch_gemv<float, float, true>
                        : gate.dtype == DType::kF16 ? launch_gemv<Float16, Float16, true>
                                                    : launch_gemv<uint16_t, uint16_t, true>;
    return launch(gemv, stream(), early_launch_);
  }
  if (args.out.dtype == DType::kF32) return gated_gemm<float, float>(args, gate, up, x);
  if (gate.dtype == DType::kF16) {
    return deterministic_ ? gated_gemm<float, Float16>(args, gate, up, x)
                          : gated_gemm<Float16, Float16>(args, gate, up, x);
  }
  if (deterministic_) return gated_gemm<float, uint16_t>(args, gate, up, x);
  gated_gemm<uint16_t, uint16_t>(args, gate, up, x);
}

// Both products, then the gate over them.
template <class P, class T>
void CudaBackend::gated_gemm(const GatedLinearArgs& args, const CudaWeight& gate, const CudaWeight& up,
                             PreparedInput x) {
  constexpr DType kType = sizeof(P) == 4 ? DType::kF32 : std::is_same_v<P, Float16> ? DType::kF16 : DType::kBF16;
  const int64_t rows = args.x.rows, size = gate.is_float() ? 4 : 2;
  const int64_t chunk = std::clamp<int64_t>(kProductFloatsMax / gate.n, 1, std::min(rows, kGridYMax));
  const int64_t cells = (chunk * gate.n + 7) / 8 * 8;
  P* const products = product_.get<P>(static_cast<size_t>(2 * cells), stream());
  for (int64_t first = 0; first < rows; first += chunk) {
    const int64_t count = std::min(chunk, rows - first);
    const Matrix out = args.out.slice_rows(first, count);
    const PreparedInput part{static_cast<const std::byte*>(x.data) + first * x.stride * size, x.stride};
    gemm(gate, part, count, false, {products, count, gate.n, gate.n, kType});
    gemm(up, part, count, false, {products + cells, count, gate.n, gate.n, kType});
    gate_kernel<P, T><<<cell_grid(count, gate.n, 16 / sizeof(P)), 256, 0, stream()>>>(
        products, products + cells, gate.n, gate.bias, up.bias, args.activation, out.row<T>(0), out.stride);
    check_launch("gate");
  }
}

}  // namespace tokenmill
