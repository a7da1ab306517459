#include "ops/backend_registry.h"

#include <charconv>
#include <string>

#ifdef TOKENMILL_CUDA
#include "ops/cuda/cuda_options.h"
#endif

namespace tokenmill {
namespace {

constexpr int kCpu = -1;

// The number of a CUDA device, or kCpu.
int device_index(std::string_view device) {
  if (device == "cpu") return kCpu;
  if (device == "cuda") return 0;
  if (device.starts_with("cuda:")) {
    int index = 0;
    const std::string_view digits = device.substr(5);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), index);
    if (error == std::errc() && end == digits.data() + digits.size() && index >= 0) return index;
  }
  throw Error(ErrorKind::kValue,
              "device must be 'cpu', 'cuda' or 'cuda:N', got '" + std::string(device.substr(0, 64)) + "'.");
}

}  // namespace

#ifdef TOKENMILL_CUDA
bool has_cuda() { return true; }
int num_cuda_devices() { return cuda_device_count(); }
std::string default_device() { return has_usable_cuda_device() ? "cuda" : "cpu"; }
#else
bool has_cuda() { return false; }
int num_cuda_devices() { return 0; }
std::string default_device() { return "cpu"; }
#endif

void check_device_name(std::string_view device) {
  if (device_index(device) == kCpu || has_cuda()) return;
  throw Error(ErrorKind::kUnsupported, "device='" + std::string(device) +
                                           "' needs a build with CUDA (make cuda, or -DTOKENMILL_CUDA=ON); this one "
                                           "runs on the CPU only (device='cpu').");
}

std::unique_ptr<Backend> make_backend(std::string_view device, const CpuOptions& cpu, bool deterministic) {
  check_device_name(device);
  const int index = device_index(device);
  if (index == kCpu) return make_cpu_backend(cpu);
#ifdef TOKENMILL_CUDA
  return make_cuda_backend({.device = index, .load_threads = cpu.num_threads, .deterministic = deterministic});
#else
  (void)deterministic;
  return nullptr;  // check_device_name() has thrown
#endif
}

int64_t count_graph_launches(const Backend& backend) {
#ifdef TOKENMILL_CUDA
  if (backend.has_graphs()) return count_cuda_graph_launches(backend);
#endif
  (void)backend;
  return 0;
}

DeviceDefaults device_defaults(std::string_view device) {
  if (device_index(device) == kCpu) {
    // 32 tokens: two 16-key tiles.
    return {.page_size = 32, .chunked_prefill_size = 512, .own_memory = false, .always_deterministic = true};
  }
  return {.page_size = 16, .chunked_prefill_size = 8192, .own_memory = true, .always_deterministic = false};
}

}  // namespace tokenmill
