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

__global__ void take_slots_kernel(const SlotToken* tokens, int count, const int32_t* slots, int32_t* target) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) target[tokens[i].token_index] = slots[tokens[i].slot];
}

}  // namespace

void CudaBackend::take_slot_tokens(std::span<const SlotToken> tokens, const SlotToken* device_tokens, int32_t* target) {
  for (const SlotToken& token : tokens) {
    TM_CHECK(token.token_index >= 0 && token.token_index < plan_->num_tokens);
    TM_CHECK(token.slot >= 0 && token.slot < num_token_slots_);
  }
  constexpr unsigned kThreads = 256;
  const auto count = static_cast<unsigned>(tokens.size());
  const auto* const slots = token_slots_.get<int32_t>(static_cast<size_t>(num_token_slots_), stream());
  take_slots_kernel<<<(count + kThreads - 1) / kThreads, kThreads, 0, stream()>>>(
      device_tokens, static_cast<int>(count), slots, target);
  check_launch("take_slots");
}

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
    const bool is_batch = ids.data() == plan.batch_tokens && ids.size() == plan.tokens.size();
    if (plan.takes_slots ? is_batch : same(plan.tokens)) return plan.device_tokens;
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
  // What is only on the device is known by its place in the batch, not by its value.
  TM_CHECK(!plan_->takes_slots || ids.data() == plan_->batch_tokens);
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
