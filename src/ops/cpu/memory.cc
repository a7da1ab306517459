// The CPU backend's memory: whole mappings, so that what is freed goes back to the system.
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/page_memory.h"
#include "ops/cpu/cpu_backend.h"

namespace tokenmill {

std::byte* CpuBackend::allocate(size_t bytes) {
  PageMemory memory(bytes, /*huge_pages=*/false);
  std::byte* const data = memory.data();
  const std::lock_guard lock(allocations_mutex_);
  allocations_.emplace(data, std::move(memory));
  return data;
}

void CpuBackend::free(std::byte* memory) {
  if (memory == nullptr) return;
  const std::lock_guard lock(allocations_mutex_);
  TM_CHECK(allocations_.erase(memory) == 1);
}

void CpuBackend::copy_to_host(void* target, const void* source, size_t bytes) { std::memcpy(target, source, bytes); }

void CpuBackend::copy_from_host(void* target, const void* source, size_t bytes) { std::memcpy(target, source, bytes); }

void CpuBackend::release_pages(std::byte* memory, size_t bytes) { release_whole_pages(memory, bytes); }

}  // namespace tokenmill
