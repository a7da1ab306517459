#include "ops/cuda/weight_upload.h"

#include <algorithm>

#include "base/machine.h"

namespace tokenmill {
namespace {

constexpr int kThreadsMax = 16;

}  // namespace

WeightUpload::WeightUpload(cudaStream_t stream, int num_threads)
    : stream_(stream), pool_(std::clamp(num_threads > 0 ? num_threads : usable_cpus(), 1, kThreadsMax), nullptr) {}

std::byte* WeightUpload::next_slot(size_t bytes) {
  current_ = (current_ + 1) % kSlots;
  Slot& slot = slots_[current_];
  TM_CUDA(cudaEventSynchronize(slot.copied.get()));
  slot.data = slot.memory.get(std::max(bytes, kSlotBytes));
  return slot.data;
}

void WeightUpload::send(std::byte* target, size_t bytes) {
  Slot& slot = slots_[current_];
  TM_CUDA(cudaMemcpyAsync(target, slot.data, bytes, cudaMemcpyHostToDevice, stream_));
  TM_CUDA(cudaEventRecord(slot.copied.get(), stream_));
}

}  // namespace tokenmill
