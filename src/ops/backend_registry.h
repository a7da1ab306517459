// Backends by device name: the one place that knows which of them this build has.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "ops/backend.h"

namespace tokenmill {

// "cpu", "cuda" or "cuda:N". deterministic: a row's bits never depend on the step's other rows; the CPU's never do.
// Throws Error(kValue) for any other name, Error(kUnsupported) when the build lacks the backend and Error(kRuntime)
// when there is no such device or it cannot be used.
std::unique_ptr<Backend> make_backend(std::string_view device, const CpuOptions& cpu, bool deterministic = false);

// For tests. Steps that a backend has launched as recorded graphs; 0 where it has none.
int64_t count_graph_launches(const Backend& backend);

// Throws as make_backend() does for a name that no device has in this build; looks for no device.
void check_device_name(std::string_view device);

// "cuda" where this build holds the CUDA backend and there is a device that is new enough for it, else "cpu".
std::string default_device();

// What the engine's options are on a device where they are not given.
struct DeviceDefaults {
  int64_t page_size = 0, chunked_prefill_size = 0;
  bool own_memory = false;            // not the host's: weights and KV pool may fill it
  bool always_deterministic = false;  // see make_backend()
};
DeviceDefaults device_defaults(std::string_view device);

// Whether this build holds the CUDA backend, and how many devices it sees (0 without a driver).
bool has_cuda();
int num_cuda_devices();

}  // namespace tokenmill
