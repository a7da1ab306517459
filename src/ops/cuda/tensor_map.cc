#include "ops/cuda/tensor_map.h"

#include <cudaTypedefs.h>

#include "base/check.h"
#include "ops/cuda/cuda_common.h"
#include "tokenmill/error.h"

namespace tokenmill {
namespace {

// From the driver, which is not linked.
PFN_cuTensorMapEncodeTiled_v12000 encoder() {
  static const auto found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
    TM_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result));
#else
    TM_CUDA(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &result));
#endif
    if (function == nullptr) throw Error(ErrorKind::kRuntime, "The NVIDIA driver has no tensor maps; update it.");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  return found;
}

CUtensorMap encode(const void* data, int rank, const cuuint64_t* sizes, const cuuint64_t* strides,
                   const cuuint32_t* box) {
  CUtensorMap map;
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  // No promotion in the L2 cache: rows of 128 bytes fetched as 256 cost an H200 5 % of a decode step, an H100 nothing.
  const CUresult result =
      encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, static_cast<cuuint32_t>(rank), const_cast<void*>(data), sizes,
                strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  TM_CHECK(result == CUDA_SUCCESS);
  return map;
}

}  // namespace

CUtensorMap pieces_map(const void* data, int64_t rows, int64_t cols, int64_t stride, int box_rows, int pieces) {
  const cuuint64_t sizes[3] = {64, static_cast<cuuint64_t>(cols / 64), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[2] = {128, static_cast<cuuint64_t>(stride * 2)};
  const cuuint32_t box[3] = {64, static_cast<cuuint32_t>(pieces), static_cast<cuuint32_t>(box_rows)};
  return encode(data, 3, sizes, strides, box);
}

CUtensorMap columns_map(const void* data, int64_t rows, int64_t cols, int64_t stride, int box_rows, int pieces) {
  const cuuint64_t sizes[3] = {64, static_cast<cuuint64_t>(rows), static_cast<cuuint64_t>(cols / 64)};
  const cuuint64_t strides[2] = {static_cast<cuuint64_t>(stride * 2), 128};
  const cuuint32_t box[3] = {64, static_cast<cuuint32_t>(box_rows), static_cast<cuuint32_t>(pieces)};
  return encode(data, 3, sizes, strides, box);
}

CUtensorMap row_groups_map(const void* data, int64_t rows, int64_t cols, int box_rows, int pieces) {
  const cuuint64_t row_bytes = static_cast<cuuint64_t>(cols * 2);
  const cuuint64_t sizes[4] = {64, 8, static_cast<cuuint64_t>(cols / 64), static_cast<cuuint64_t>(rows / 8)};
  const cuuint64_t strides[3] = {row_bytes, 128, 8 * row_bytes};
  const cuuint32_t box[4] = {64, 8, static_cast<cuuint32_t>(pieces), static_cast<cuuint32_t>(box_rows / 8)};
  return encode(data, 4, sizes, strides, box);
}

bool has_body(const void* kernel, PerDevice& known) {
  return known.get([kernel] {
    cudaFuncAttributes attributes{};
    TM_CUDA(cudaFuncGetAttributes(&attributes, kernel));
    return attributes.sharedSizeBytes > 0 ? 1 : 0;
  }) == 1;
}

}  // namespace tokenmill
