#include "ops/backend_registry.h"

#include <charconv>
#include <string>

#include "tokenmill/error.h"
#ifdef TOKENMILL_CUDA
#include "ops/cuda/cuda_options.h"
#endif

namespace tokenmill {

#ifdef TOKENMILL_CUDA
bool has_cuda() { return true; }
int num_cuda_devices() { return cuda_device_count(); }
#else
bool has_cuda() { return false; }
int num_cuda_devices() { return 0; }
#endif

std::unique_ptr<Backend> make_backend(std::string_view device, const CpuOptions& cpu) {
  if (device == "cpu") return make_cpu_backend(cpu);
  int index = 0;
  bool known = device == "cuda";
  if (device.starts_with("cuda:")) {
    const std::string_view digits = device.substr(5);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), index);
    known = error == std::errc() && end == digits.data() + digits.size() && index >= 0;
  }
  if (!known) {
    throw Error(ErrorKind::kValue, "device must be 'cpu', 'cuda' or 'cuda:N', got '" + std::string(device) + "'.");
  }
#ifdef TOKENMILL_CUDA
  return make_cuda_backend({.device = index});
#else
  throw Error(ErrorKind::kUnsupported, "device '" + std::string(device) +
                                           "' needs a build with -DTOKENMILL_CUDA=ON; this one runs on the CPU only.");
#endif
}

}  // namespace tokenmill
