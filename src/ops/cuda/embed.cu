// embed(): rows of the packed table, which may be the lm_head's too; and where ids of the step are found on the device.
#include <algorithm>

#include "base/check.h"
#include "ops/cuda/cuda_backend.h"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/step_plan.h"

namespace tokenmill {
namespace {

template <class T>
__global__ void embed_kernel(const int32_t* ids, const T* table, int64_t table_stride, int64_t cols, float scale,
                             float* out, int64_t out_stride) {
  const T* const row = table + ids[blockIdx.x] * table_stride;
  for (int64_t i = threadIdx.x; i < cols; i += blockDim.x) out[blockIdx.x * out_stride + i] = to_float(row[i]) * scale;
}

}  // namespace

const int32_t* CudaBackend::device_ids(std::span<const int32_t> ids, DeviceScratch& scratch) {
  const auto same = [&](const std::vector<int32_t>& sent) { return std::ranges::equal(sent, ids); };
  const StepPlan& plan = *plan_;
  if (graphs_.recording()) {
    // Equal values by chance would be a trap: the record is launched with others.
    if (ids.data() == plan.batch_tokens && ids.size() == plan.tokens.size()) return plan.device_tokens;
    if (ids.data() == plan.batch_positions && ids.size() == plan.positions.size()) return plan.device_positions;
    throw NotRecordable("ids that are not the planned batch's");
  }
  if (plan.device_tokens != nullptr) {
    if (same(plan.tokens)) return plan.device_tokens;
    if (same(plan.positions)) return plan.device_positions;
    if (same(plan.sampled)) return plan.device_sampled;
  }
  int32_t* const target = scratch.get<int32_t>(ids.size(), stream());
  // From pageable memory: the source is free when the call returns.
  TM_CUDA(cudaMemcpyAsync(target, ids.data(), ids.size_bytes(), cudaMemcpyHostToDevice, stream()));
  return target;
}

void CudaBackend::embed(std::span<const int32_t> ids, const Weight& table, float scale, Matrix out) {
  const auto& weight = static_cast<const CudaWeight&>(table);
  TM_CHECK(out.rows == static_cast<int64_t>(ids.size()) && out.cols == weight.k && out.dtype == DType::kF32);
  for (const int32_t id : ids) TM_CHECK(id >= 0 && id < weight.n);
  if (ids.empty()) return;
  use_device();
  const int32_t* const device = device_ids(ids, ids_);
  const unsigned grid = static_cast<unsigned>(ids.size());
  const auto launch = [&]<class T>(const T* rows) {
    embed_kernel<<<grid, 256, 0, stream()>>>(device, rows, weight.stride, weight.k, scale, out.row<float>(0),
                                             out.stride);
  };
  const void* const rows = weight.memory.data();
  if (weight.is_float()) {
    launch(static_cast<const float*>(rows));
  } else if (weight.dtype == DType::kF16) {
    launch(static_cast<const Float16*>(rows));
  } else {
    launch(static_cast<const uint16_t*>(rows));
  }
  check_launch("embed");
}

}  // namespace tokenmill
