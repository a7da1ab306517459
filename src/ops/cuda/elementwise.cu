// gather_rows() and softcap().
#include "base/check.h"
#include "ops/cuda/cuda_backend.h"

namespace tokenmill {
namespace {

__global__ void gather_rows_kernel(const float* x, int64_t x_stride, const int32_t* rows, int64_t cols, float* out,
                                   int64_t out_stride) {
  const float* const row = x + rows[blockIdx.x] * x_stride;
  for (int64_t i = threadIdx.x; i < cols; i += blockDim.x) out[blockIdx.x * out_stride + i] = row[i];
}

__global__ void softcap_kernel(float* x, int64_t stride, int64_t cols, float cap) {
  for (int64_t i = blockIdx.y * int64_t{256} + threadIdx.x; i < cols; i += int64_t{256} * gridDim.y) {
    float& value = x[blockIdx.x * stride + i];
    value = cap * tanhf(value / cap);
  }
}

}  // namespace

cudaError_t find_kernels() {
  cudaFuncAttributes attributes{};
  return cudaFuncGetAttributes(&attributes, softcap_kernel);
}

void CudaBackend::gather_rows(Matrix x, std::span<const int32_t> rows, Matrix out) {
  TM_CHECK(out.rows == static_cast<int64_t>(rows.size()) && out.cols == x.cols);
  TM_CHECK(x.dtype == DType::kF32 && out.dtype == DType::kF32);
  for (const int32_t row : rows) TM_CHECK(row >= 0 && row < x.rows);
  if (rows.empty()) return;
  use_device();
  gather_rows_kernel<<<static_cast<unsigned>(rows.size()), 256, 0, stream()>>>(
      x.row<float>(0), x.stride, device_ids(rows, row_ids_), x.cols, out.row<float>(0), out.stride);
  check_launch("gather_rows");
}

void CudaBackend::softcap(Matrix x, float cap) {
  TM_CHECK(cap > 0 && x.dtype == DType::kF32);
  if (x.rows == 0 || x.cols == 0) return;
  use_device();
  const int64_t pieces = std::min<int64_t>((x.cols + 1023) / 1024, 1024);
  softcap_kernel<<<dim3(static_cast<unsigned>(x.rows), static_cast<unsigned>(pieces)), 256, 0, stream()>>>(
      x.row<float>(0), x.stride, x.cols, cap);
  check_launch("softcap");
}

}  // namespace tokenmill
