// Backends by device name: the one place that knows which of them this build has.
#pragma once

#include <memory>
#include <string_view>

#include "ops/backend.h"

namespace tokenmill {

// "cpu", "cuda" or "cuda:N". num_threads and isa are the CPU's. Throws Error(kUnsupported) when the build lacks the
// backend and Error(kRuntime) when there is no such device.
std::unique_ptr<Backend> make_backend(std::string_view device, const CpuOptions& cpu);

// Whether this build holds the CUDA backend, and how many devices it sees (0 without a driver).
bool has_cuda();
int num_cuda_devices();

}  // namespace tokenmill
