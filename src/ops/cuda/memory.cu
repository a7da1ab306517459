// Owners of CUDA objects, and the backend's allocations and copies.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "base/check.h"
#include "ops/cuda/cublas_library.h"
#include "ops/cuda/cuda_backend.h"
#include "tokenmill/error.h"

namespace tokenmill {

namespace {

// what: "0.25 GB asked", or the call that failed.
[[noreturn]] void throw_out_of_memory(const std::string& what) {
  size_t free = 0, total = 0;
  char left[96] = "";
  if (cudaMemGetInfo(&free, &total) == cudaSuccess) {
    std::snprintf(left, sizeof(left), ", %.2f GB of %.2f GB free", static_cast<double>(free) / (1 << 30),
                  static_cast<double>(total) / (1 << 30));
  }
  const std::string figures = what + left + " on the CUDA device";
  throw DeviceMemoryError(
      "Not enough memory. Please try to lower mem_fraction_static or reduce max_total_tokens, "
      "max_running_requests or chunked_prefill_size (" +
          figures + ").",
      figures);
}

std::string asked(size_t bytes) {
  if (bytes < size_t{1} << 20) return std::to_string(bytes) + " bytes asked";
  char text[48];
  std::snprintf(text, sizeof(text), "%.3g GB asked", static_cast<double>(bytes) / (1 << 30));
  return text;
}

}  // namespace

void check_cuda(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  if (status == cudaErrorMemoryAllocation) throw_out_of_memory(std::string("at ") + call);
  throw DeviceError(std::string("CUDA: ") + cudaGetErrorString(status) + " (" + cudaGetErrorName(status) + ") at " +
                    call + ".");
}

void check_cublas(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  if (status == CUBLAS_STATUS_ALLOC_FAILED) throw_out_of_memory(std::string("at ") + call);
  throw DeviceError(std::string("cuBLAS: ") + cublasGetStatusString(status) + " at " + call + ".");
}

DeviceMemory::DeviceMemory(size_t bytes) : bytes_(bytes) {
  const cudaError_t status = cudaMalloc(&data_, std::max<size_t>(bytes, 256));
  if (status == cudaSuccess) return;
  data_ = nullptr;
  if (status != cudaErrorMemoryAllocation) check_cuda(status, "cudaMalloc");
  cudaGetLastError();
  throw_out_of_memory(asked(bytes));
}

// Errors at teardown have nobody to go to, and are not to be taken for those of a later launch.
DeviceMemory::~DeviceMemory() {
  if (data_ != nullptr && cudaFree(data_) != cudaSuccess) cudaGetLastError();
}

std::byte* DeviceScratch::get_bytes(size_t bytes, cudaStream_t stream) {
  if (memory_.data() != nullptr && bytes <= memory_.bytes()) return memory_.data();
  const size_t wanted = std::max({bytes, memory_.bytes() + memory_.bytes() / 2, size_t{256}});
  TM_CUDA(cudaStreamSynchronize(stream));  // running kernels may use the old memory
  moves_->add();
  memory_ = DeviceMemory();  // before the new one is taken: both may not fit
  memory_ = DeviceMemory(wanted);
  if (zeroed_) TM_CUDA(cudaMemsetAsync(memory_.data(), 0, wanted, stream));
  return memory_.data();
}

PinnedMemory::~PinnedMemory() {
  if (data_ != nullptr) cudaFreeHost(data_);
}

std::byte* PinnedMemory::get(size_t bytes) {
  if (data_ != nullptr && bytes <= bytes_) return data_;
  const size_t wanted = std::max({bytes, bytes_ + bytes_ / 2, size_t{4096}});
  if (data_ != nullptr) TM_CUDA(cudaFreeHost(std::exchange(data_, nullptr)));
  const cudaError_t status = cudaMallocHost(&data_, wanted);
  if (status != cudaSuccess) data_ = nullptr;
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw DeviceMemoryError(
        "Not enough memory: the system gives no more pinned memory for copies to the CUDA device (" + asked(wanted) +
            "). Raise this process's memory limit, or end what else holds memory.",
        asked(wanted));
  }
  check_cuda(status, "cudaMallocHost");
  bytes_ = wanted;
  return data_;
}

size_t PackedUpload::add_bytes(const void* data, size_t bytes) {
  const size_t offset = (image_.size() + 15) / 16 * 16;
  image_.resize(offset + bytes);
  if (bytes > 0) std::memcpy(image_.data() + offset, data, bytes);
  return offset;
}

void PackedUpload::send(cudaStream_t stream) {
  Slot& slot = slots_[next_];
  next_ = 1 - next_;
  TM_CUDA(cudaEventSynchronize(slot.copied.get()));
  std::byte* const device_data = device_.get<std::byte>(image_.size(), stream);
  device_data_ = device_data;
  if (image_.empty()) return;
  std::byte* const host = slot.memory.get(image_.size());
  std::memcpy(host, image_.data(), image_.size());
  TM_CUDA(cudaMemcpyAsync(device_data, host, image_.size(), cudaMemcpyHostToDevice, stream));
  TM_CUDA(cudaEventRecord(slot.copied.get(), stream));
}

CublasHandle::CublasHandle(cudaStream_t stream) {
  require_cublas();
  workspace_ = DeviceMemory(size_t{32} << 20);
  cublasHandle_t handle = nullptr;
  const cublasStatus_t created = cublasCreate(&handle);
  // What it says on a full device, too.
  check_cublas(created == CUBLAS_STATUS_NOT_INITIALIZED ? CUBLAS_STATUS_ALLOC_FAILED : created, "cublasCreate");
  handle_.reset(handle);
  TM_CUBLAS(cublasSetStream(handle, stream));
  TM_CUBLAS(cublasSetWorkspace(handle, workspace_.data(), workspace_.bytes()));
  // Neither TF32 for fp32 inputs nor sums in bf16 for bf16 ones.
  TM_CUBLAS(cublasSetMathMode(
      handle, static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)));
}

std::byte* CudaBackend::allocate(size_t bytes) {
  use_device();
  DeviceMemory memory(bytes);
  std::byte* const data = memory.data();
  TM_CUDA(cudaMemsetAsync(data, 0, std::max<size_t>(bytes, 1), stream()));
  const std::lock_guard lock(allocations_mutex_);
  allocations_.emplace(data, std::move(memory));
  return data;
}

// Called by destructors, on a broken device too: its errors have nobody to go to.
void CudaBackend::free(std::byte* memory) {
  if (memory == nullptr) return;
  cudaSetDevice(device_);
  cudaStreamSynchronize(stream());
  cudaGetLastError();
  const std::lock_guard lock(allocations_mutex_);
  TM_CHECK(allocations_.erase(memory) == 1);
}

void CudaBackend::copy_to_host(void* target, const void* source, size_t bytes) {
  use_device();
  TM_CUDA(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToHost, stream()));
  TM_CUDA(cudaStreamSynchronize(stream()));
}

void CudaBackend::copy_from_host(void* target, const void* source, size_t bytes) {
  use_device();
  TM_CUDA(cudaMemcpyAsync(target, source, bytes, cudaMemcpyHostToDevice, stream()));
  TM_CUDA(cudaStreamSynchronize(stream()));
}

int64_t CudaBackend::available_memory() const {
  use_device();
  size_t free = 0, total = 0;
  TM_CUDA(cudaMemGetInfo(&free, &total));
  return static_cast<int64_t>(free);
}

void CudaBackend::release_pages(std::byte*, size_t) {}  // device memory has no pages to give back singly

}  // namespace tokenmill
