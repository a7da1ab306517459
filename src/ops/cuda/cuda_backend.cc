#include "ops/cuda/cuda_backend.h"

#include <cstdio>

#include "ops/cuda/step_plan.h"
#include "tokenmill/error.h"

namespace tokenmill {

int cuda_device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // no driver is no error here
  return 0;
}

CudaBackend::CudaBackend(const CudaOptions& options) : device_(options.device), gemv_rows_max_(options.gemv_rows_max) {
  const int count = cuda_device_count();
  if (count == 0)
    throw Error(ErrorKind::kRuntime, "No CUDA device: no card, or no NVIDIA driver for CUDA 12 or later.");
  if (device_ < 0 || device_ >= count) {
    throw Error(ErrorKind::kRuntime, "There is no CUDA device " + std::to_string(device_) + ": this machine has " +
                                         std::to_string(count) + ".");
  }
  if (gemv_rows_max_ < 0 || gemv_rows_max_ > 8) {
    throw Error(ErrorKind::kValue, "gemv_rows_max must be in [0, 8], got " + std::to_string(gemv_rows_max_) + ".");
  }
  use_device();
  cudaDeviceProp properties{};
  TM_CUDA(cudaGetDeviceProperties(&properties, device_));
  num_sms_ = properties.multiProcessorCount;
  early_launch_ = properties.major >= 9;
  char text[512];
  std::snprintf(text, sizeof(text), "%s (sm_%d%d, %d multiprocessors, %.1f GiB)", properties.name, properties.major,
                properties.minor, num_sms_, static_cast<double>(properties.totalGlobalMem) / (1 << 30));
  card_ = text;
  stream_ = std::make_unique<CudaStream>();
  cublas_ = std::make_unique<CublasHandle>(stream_->get());
  plan_ = std::make_unique<StepPlan>();
}

CudaBackend::~CudaBackend() {
  // What is still running reads memory that is about to be freed.
  cudaSetDevice(device_);
  cudaStreamSynchronize(stream_->get());
}

std::string CudaBackend::description() const { return card_; }

std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options) {
  return std::make_unique<CudaBackend>(options);
}

}  // namespace tokenmill
