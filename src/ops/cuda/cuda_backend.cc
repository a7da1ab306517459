#include "ops/cuda/cuda_backend.h"

#include <algorithm>
#include <cstdio>
#include <string>

#include "base/check.h"
#include "ops/cuda/step_plan.h"
#include "tokenmill/error.h"

namespace tokenmill {
namespace {

constexpr int kOldestMajor = 8;  // sm_80: bf16

}  // namespace

int cuda_device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // no driver is no error here
  return 0;
}

bool has_usable_cuda_device() {
  cudaDeviceProp properties{};
  if (cuda_device_count() == 0) return false;
  if (cudaGetDeviceProperties(&properties, 0) == cudaSuccess) return properties.major >= kOldestMajor;
  cudaGetLastError();
  return false;
}

namespace {

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string error_text(cudaError_t status) {
  cudaGetLastError();
  return std::string(cudaGetErrorString(status)) + " (" + cudaGetErrorName(status) + ")";
}

// Throws with what is missing: the driver, a newer driver, or a card.
int require_devices() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && count > 0) return count;
  std::string reason = error_text(status);
  if (status == cudaErrorInsufficientDriver) {
    int driver = 0;
    cudaDriverGetVersion(&driver);
    reason = driver == 0 ? "there is no NVIDIA driver (libcuda.so.1)"
                         : "the NVIDIA driver is for CUDA " + version_text(driver) + ", and this build needs one for " +
                               version_text(CUDART_VERSION) + ": update the driver";
  } else if (status == cudaErrorNoDevice || status == cudaSuccess) {
    reason = "the driver sees no card (CUDA_VISIBLE_DEVICES may hide it)";
  }
  throw Error(ErrorKind::kRuntime, "No CUDA device: " + reason + ". Use device='cpu' to run on the CPU.");
}

constexpr const char* kElsewhere = "Use another card ('cuda:N') or device='cpu'.";

// "CUDA device 0 (NVIDIA H100 80GB HBM3) "
std::string device_text(int device, const cudaDeviceProp& properties) {
  return "CUDA device " + std::to_string(device) + " (" + properties.name + ") ";
}

[[noreturn]] void throw_full(int device, const std::string& device_text) {
  size_t free = 0, total = 0;
  char left[80] = "no memory";
  if (cudaSetDevice(device) == cudaSuccess && cudaMemGetInfo(&free, &total) == cudaSuccess) {
    std::snprintf(left, sizeof(left), "%.2f GB of %.2f GB", static_cast<double>(free) / (1 << 30),
                  static_cast<double>(total) / (1 << 30));
  }
  cudaGetLastError();
  throw Error(ErrorKind::kRuntime, device_text + "is full: " + left +
                                       " free, too little to start on. End what holds its memory (nvidia-smi lists "
                                       "it), or give engines before this one a smaller mem_fraction_static. " +
                                       kElsewhere);
}

// Makes the device this thread's, so that the backend's members are made on it.
int use_checked_device(int device) {
  const int count = require_devices();
  if (device < 0 || device >= count) {
    throw Error(ErrorKind::kRuntime, "There is no CUDA device " + std::to_string(device) + ": this machine has " +
                                         std::to_string(count) + ", counted from 0 ('cuda:0').");
  }
  cudaDeviceProp properties{};
  TM_CUDA(cudaGetDeviceProperties(&properties, device));
  const std::string name = device_text(device, properties);
  if (properties.major < kOldestMajor) {
    throw Error(ErrorKind::kRuntime, name + "has compute capability " + std::to_string(properties.major) + "." +
                                         std::to_string(properties.minor) + "; 8.0 or later is needed. " + kElsewhere);
  }
  const cudaError_t status = cudaSetDevice(device);  // starts the device
  if (status == cudaErrorMemoryAllocation) throw_full(device, name);
  if (status == cudaErrorDevicesUnavailable) {
    throw Error(ErrorKind::kRuntime, name +
                                         "is in use by another process alone, or its compute mode forbids all "
                                         "(cudaErrorDevicesUnavailable). End that process (nvidia-smi lists it). " +
                                         kElsewhere);
  }
  if (status != cudaSuccess) {
    throw Error(ErrorKind::kRuntime, name + "cannot be used: " + error_text(status) + ". " + kElsewhere);
  }
  if (const cudaError_t found = find_kernels(); found != cudaSuccess) {
    throw Error(ErrorKind::kRuntime,
                name + "has compute capability " + std::to_string(properties.major) + "." +
                    std::to_string(properties.minor) + ", for which this build has no kernels: " + error_text(found) +
                    ". Build with CMAKE_CUDA_ARCHITECTURES for it, or update the driver. " + kElsewhere);
  }
  return device;
}

int attribute_of(int device, cudaDeviceAttr attribute) {
  int value = 0;
  TM_CUDA(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

// With more than 8 rows the kernels of stream_linear.h take in as much input as weights. That is more than a
// multiprocessor can where its share of the memory's rate is large: an H200's is 19 bytes a clock, an H100's 13.
int tens_rows_min_of(int device, int num_sms) {
  constexpr double kBytesMax = 16;
  const double memory = 2.0 * attribute_of(device, cudaDevAttrMemoryClockRate) *
                        attribute_of(device, cudaDevAttrGlobalMemoryBusWidth) / 8;
  return memory > kBytesMax * num_sms * attribute_of(device, cudaDevAttrClockRate) ? 9 : 17;
}

}  // namespace

CudaBackend::CudaBackend(const CudaOptions& options)
    : device_(use_checked_device(options.device)),
      // Deterministic inference has one kind of product for all numbers of rows.
      gemv_rows_max_(options.deterministic ? 0 : options.gemv_rows_max),
      stream_rows_max_(options.deterministic ? 0 : options.stream_rows_max),
      tens_rows_max_(options.tens_rows_max),
      tens_rows_min_(options.tens_rows_min),
      many_rows_min_(options.many_rows_min),
      many_k_min_(options.many_k_min),
      wide_rows_max_(options.wide_rows_max),
      load_threads_(options.load_threads),
      hopper_attention_(options.hopper_attention),
      deterministic_(options.deterministic) {
  if (gemv_rows_max_ < 0 || gemv_rows_max_ > 8) {
    throw Error(ErrorKind::kValue, "gemv_rows_max must be in [0, 8], got " + std::to_string(gemv_rows_max_) + ".");
  }
  cudaDeviceProp properties{};
  TM_CUDA(cudaGetDeviceProperties(&properties, device_));
  num_sms_ = properties.multiProcessorCount;
  shared_bytes_max_ = properties.sharedMemPerBlockOptin;
  if (options.shared_bytes_max > 0) shared_bytes_max_ = std::min(shared_bytes_max_, options.shared_bytes_max);
  early_launch_ = properties.major >= 9;
  if (tens_rows_min_ == 0) tens_rows_min_ = tens_rows_min_of(device_, num_sms_);
  char text[512];
  std::snprintf(text, sizeof(text), "%s (sm_%d%d, %d multiprocessors, %.1f GiB)", properties.name, properties.major,
                properties.minor, num_sms_, static_cast<double>(properties.totalGlobalMem) / (1 << 30));
  card_ = text;
  try {
    stream_ = std::make_unique<CudaStream>();
    cublas_ = std::make_unique<CublasHandle>(stream_->get());
    plan_ = std::make_unique<StepPlan>(moves_);
  } catch (const DeviceMemoryError&) {
    throw_full(device_, device_text(device_, properties));
  }
  plan_->one_split = deterministic_;
}

CudaBackend::~CudaBackend() {
  // What is still running reads memory that is about to be freed.
  cudaSetDevice(device_);
  cudaStreamSynchronize(stream_->get());
  cudaGetLastError();
}

std::string CudaBackend::description() const { return card_; }

void CudaBackend::run_graph(uint64_t key, const std::function<void()>& work) {
  use_device();
  TM_CHECK(plan_->decode_only);
  graphs_.run({key, plan_->shape()}, stream(), work);
}

int64_t count_cuda_graph_launches(const Backend& backend) {
  return dynamic_cast<const CudaBackend&>(backend).num_graph_launches();
}

std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options) {
  return std::make_unique<CudaBackend>(options);
}

}  // namespace tokenmill
