// Error checks and owners of CUDA objects.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tokenmill/error.h"

namespace tokenmill {

// The device has not enough memory for something; it is of use all the same, so that only the step fails.
class DeviceMemoryError : public Error {
 public:
  // figures: what was asked and what is free, part of the message.
  DeviceMemoryError(const std::string& message, std::string figures)
      : Error(ErrorKind::kRuntime, message), figures_(std::move(figures)) {}
  const std::string& figures() const { return figures_; }

 private:
  std::string figures_;
};

// Throw DeviceError naming the call, or DeviceMemoryError.
void check_cuda(cudaError_t status, const char* call);
void check_cublas(cublasStatus_t status, const char* call);
#define TM_CUDA(call) ::tokenmill::check_cuda((call), #call)
#define TM_CUBLAS(call) ::tokenmill::check_cublas((call), #call)
// After a kernel launch.
inline void check_launch(const char* kernel) { check_cuda(cudaGetLastError(), kernel); }

// Device memory that frees itself. Throws DeviceMemoryError "Not enough memory. …" with what was asked and what is
// free.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  explicit DeviceMemory(size_t bytes);
  ~DeviceMemory();
  DeviceMemory(DeviceMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

// How often scratch buffers of one backend have moved: what holds their addresses must look. A backend shares no buffer
// with another, so what moves in one engine is nothing to the others, on its card or elsewhere. For one thread at a
// time, as the backend is.
class ScratchMoves {
 public:
  void add() { ++count_; }
  uint64_t count() const { return count_; }

 private:
  uint64_t count_ = 0;
};

// Grow-only scratch on the device; contents are undefined after get(), or kept as zeros where `zeroed`.
class DeviceScratch {
 public:
  explicit DeviceScratch(ScratchMoves& moves, bool zeroed = false) : moves_(&moves), zeroed_(zeroed) {}
  template <class T>
  T* get(size_t count, cudaStream_t stream) {
    return reinterpret_cast<T*>(get_bytes(count * sizeof(T), stream));
  }

 private:
  std::byte* get_bytes(size_t bytes, cudaStream_t stream);
  ScratchMoves* moves_;
  DeviceMemory memory_;
  bool zeroed_;
};

class CudaStream {
 public:
  CudaStream() { TM_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~CudaStream() { cudaStreamDestroy(stream_); }
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class CudaEvent {
 public:
  CudaEvent() { TM_CUDA(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming)); }
  ~CudaEvent() { cudaEventDestroy(event_); }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

// Grow-only pinned host memory. Throws DeviceMemoryError.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  ~PinnedMemory();
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;
  std::byte* get(size_t bytes);
  const std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

// Many small host arrays to the device in one copy: add() them, send(), then ask for their places. Two pinned images
// take turns, so that the next one is written while the last is still read.
class PackedUpload {
 public:
  explicit PackedUpload(ScratchMoves& moves) : device_(moves) {}
  void begin() { image_.clear(); }
  // Offset of the array in the image.
  template <class T>
  size_t add(std::span<const T> values) {
    return add_bytes(values.data(), values.size_bytes());
  }
  void send(cudaStream_t stream);
  template <class T>
  const T* at(size_t offset) const {
    return reinterpret_cast<const T*>(device_data_ + offset);
  }
  template <class T>
  T* mutable_at(size_t offset) {
    return reinterpret_cast<T*>(device_data_ + offset);
  }

 private:
  size_t add_bytes(const void* data, size_t bytes);
  std::vector<std::byte> image_;
  struct Slot {
    PinnedMemory memory;
    CudaEvent copied;
  };
  Slot slots_[2];
  int next_ = 0;
  DeviceScratch device_;
  std::byte* device_data_ = nullptr;
};

class CublasHandle {
 public:
  explicit CublasHandle(cudaStream_t stream);
  cublasHandle_t get() const { return handle_.get(); }

 private:
  struct Deleter {
    void operator()(cublasHandle_t handle) const { cublasDestroy(handle); }
  };
  DeviceMemory workspace_;  // our own, so that no captured graph holds one of its own
  std::unique_ptr<cublasContext, Deleter> handle_;
};

}  // namespace tokenmill
