#include "cuda/fake_cuda.h"

#include <cublas_v2.h>
#include <cuda.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace tokenmill::testing {
namespace {

FakeCuda* installed = nullptr;
thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;
thread_local bool recording = false, record_is_broken = false;

constexpr size_t kPage = 4096;
size_t whole_pages(size_t bytes) { return (std::max<size_t>(bytes, 1) + kPage - 1) / kPage * kPage; }

// Address space: pages are taken when touched, as the pool of an engine never is as a whole.
void* map_pages(size_t bytes) {
  void* const data =
      mmap(nullptr, whole_pages(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return data == MAP_FAILED ? nullptr : data;
}

}  // namespace

FakeCuda::FakeCuda() {
  if (installed != nullptr) std::abort();
  installed = this;
  current_device = 0;
  last_error = cudaSuccess;
}

FakeCuda::~FakeCuda() {
  installed = nullptr;
  for (const auto& [data, block] : memory_) munmap(data, whole_pages(block.bytes));
  for (const auto& [data, bytes] : pinned_) std::free(data);
}

void FakeCuda::set_answer(std::function<cudaError_t(std::string_view)> value) {
  const std::lock_guard lock(mutex_);
  answer = std::move(value);
}

std::map<std::string, int> FakeCuda::calls() const {
  const std::lock_guard lock(mutex_);
  return calls_;
}

int64_t FakeCuda::num_held() const {
  const std::lock_guard lock(mutex_);
  int64_t count = static_cast<int64_t>(memory_.size() + pinned_.size());
  for (const auto& [kind, held] : held_) count += held;
  return count;
}

size_t FakeCuda::bytes_used(int device) const {
  const std::lock_guard lock(mutex_);
  return cards.at(static_cast<size_t>(device)).used;
}

// The calls' bodies, which see the state.
struct FakeCalls {
  // `work` unless the test has the call fail. Errors stay for cudaGetLastError().
  template <class Work>
  static cudaError_t run(const char* name, Work&& work) {
    if (installed == nullptr) {
      std::fprintf(stderr, "%s without a FakeCuda\n", name);
      std::abort();
    }
    const std::lock_guard lock(installed->mutex_);
    ++installed->calls_[name];
    cudaError_t status = installed->answer ? installed->answer(name) : cudaSuccess;
    if (status == cudaSuccess) status = work(*installed);
    if (status != cudaSuccess) last_error = status;
    return status;
  }

  // The same for calls that break a record, as those that allocate or wait do.
  template <class Work>
  static cudaError_t run_outside_records(const char* name, Work&& work) {
    return run(name, [&](FakeCuda& cuda) {
      if (!recording) return work(cuda);
      record_is_broken = true;
      return cudaErrorStreamCaptureUnsupported;
    });
  }

  template <class Handle>
  static cudaError_t make(const char* name, const char* kind, Handle* out) {
    return run(name, [&](FakeCuda& cuda) {
      ++cuda.held_[kind];
      *out = reinterpret_cast<Handle>(new char);
      return cudaSuccess;
    });
  }
  // Never fails: what is called while something ends has nobody to tell.
  static cudaError_t end(const char* name, const char* kind, void* handle) {
    const std::lock_guard lock(installed->mutex_);
    ++installed->calls_[name];
    --installed->held_[kind];
    delete static_cast<char*>(handle);
    return cudaSuccess;
  }
  static void begin_graph(FakeCuda& cuda, cudaGraph_t* graph) {
    ++cuda.held_["graph"];
    *graph = reinterpret_cast<cudaGraph_t>(new char);
  }

  static cudaError_t allocate(void** data, size_t bytes) {
    return run_outside_records("cudaMalloc", [&](FakeCuda& cuda) {
      FakeCard& card = cuda.cards.at(static_cast<size_t>(current_device));
      if (bytes > card.total - std::min(card.total, card.used + card.used_by_others)) return cudaErrorMemoryAllocation;
      *data = map_pages(bytes);
      if (*data == nullptr) return cudaErrorMemoryAllocation;
      cuda.memory_[*data] = {bytes, current_device};
      card.used += bytes;
      return cudaSuccess;
    });
  }
  static cudaError_t release(void* data) {
    const std::lock_guard lock(installed->mutex_);
    ++installed->calls_["cudaFree"];
    const auto found = installed->memory_.find(data);
    if (found == installed->memory_.end()) std::abort();  // freed twice, or never made
    installed->cards.at(static_cast<size_t>(found->second.device)).used -= found->second.bytes;
    munmap(data, whole_pages(found->second.bytes));
    installed->memory_.erase(found);
    return cudaSuccess;
  }
  static cudaError_t allocate_pinned(void** data, size_t bytes) {
    return run_outside_records("cudaHostAlloc", [&](FakeCuda& cuda) {
      *data = std::calloc(1, bytes);
      cuda.pinned_[*data] = bytes;
      return *data != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
    });
  }
  static cudaError_t release_pinned(void* data) {
    const std::lock_guard lock(installed->mutex_);
    if (installed->pinned_.erase(data) != 1) std::abort();
    std::free(data);
    return cudaSuccess;
  }
  static cudaError_t launched(const char* name, unsigned blocks) {
    return run(name, [&](FakeCuda& cuda) {
      if (cuda.on_launch) cuda.on_launch(current_device, blocks);
      return cudaSuccess;
    });
  }
};

namespace {

cudaError_t nothing(const char* name) {
  return FakeCalls::run(name, [](FakeCuda&) { return cudaSuccess; });
}
cudaError_t nothing_outside_records(const char* name) {
  return FakeCalls::run_outside_records(name, [](FakeCuda&) { return cudaSuccess; });
}
cublasStatus_t blas_status(cudaError_t status) {
  return status == cudaSuccess                 ? CUBLAS_STATUS_SUCCESS
         : status == cudaErrorMemoryAllocation ? CUBLAS_STATUS_ALLOC_FAILED
                                               : CUBLAS_STATUS_EXECUTION_FAILED;
}

// Zeros without touching what has not been touched.
void clear(void* data, size_t bytes) {
  const size_t pages = reinterpret_cast<uintptr_t>(data) % kPage == 0 ? bytes / kPage * kPage : 0;
  if (pages > 0) madvise(data, pages, MADV_DONTNEED);
  std::memset(static_cast<char*>(data) + pages, 0, bytes - pages);
}

}  // namespace
}  // namespace tokenmill::testing

// --- what the linker calls instead of the runtime
// ---------------------------------------------------------------------
using tokenmill::testing::FakeCalls;
using tokenmill::testing::FakeCuda;
namespace fake = tokenmill::testing;

namespace tokenmill::wrapped {
// Mangled as the function it stands for.
extern "C" void __wrap__ZN9tokenmill14require_cublasEv() {}
}  // namespace tokenmill::wrapped

extern "C" {

cudaError_t __wrap_cudaDriverGetVersion(int* version) {
  return FakeCalls::run("cudaDriverGetVersion", [&](FakeCuda& cuda) {
    *version = cuda.driver_version;
    return cudaSuccess;
  });
}
cudaError_t __wrap_cudaGetDeviceCount(int* count) {
  return FakeCalls::run("cudaGetDeviceCount", [&](FakeCuda& cuda) {
    *count = 0;
    if (cuda.driver_version < CUDART_VERSION / 1000 * 1000) return cudaErrorInsufficientDriver;
    if (cuda.cards.empty()) return cudaErrorNoDevice;
    *count = static_cast<int>(cuda.cards.size());
    return cudaSuccess;
  });
}
cudaError_t __wrap_cudaGetDevice(int* device) {
  *device = fake::current_device;
  return cudaSuccess;
}
cudaError_t __wrap_cudaSetDevice(int device) {
  return FakeCalls::run("cudaSetDevice", [&](FakeCuda& cuda) {
    if (device < 0 || static_cast<size_t>(device) >= cuda.cards.size()) return cudaErrorInvalidDevice;
    fake::current_device = device;
    return cudaSuccess;
  });
}
cudaError_t __wrap_cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  return FakeCalls::run("cudaGetDeviceProperties", [&](FakeCuda& cuda) {
    const fake::FakeCard& card = cuda.cards.at(static_cast<size_t>(device));
    *properties = {};
    std::snprintf(properties->name, sizeof(properties->name), "%s", card.name.c_str());
    properties->major = card.major;
    properties->minor = card.minor;
    properties->multiProcessorCount = card.num_sms;
    properties->totalGlobalMem = card.total;
    properties->sharedMemPerBlockOptin = 227 << 10;
    return cudaSuccess;
  });
}
cudaError_t __wrap_cudaGetDeviceProperties_v2(cudaDeviceProp* properties, int device) {  // before CUDA 13
  return __wrap_cudaGetDeviceProperties(properties, device);
}
cudaError_t __wrap_cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  return FakeCalls::run("cudaDeviceGetAttribute", [&](FakeCuda&) {
    *value = attribute == cudaDevAttrMemoryClockRate        ? 2'619'000
             : attribute == cudaDevAttrGlobalMemoryBusWidth ? 5120
             : attribute == cudaDevAttrClockRate            ? 1'980'000
                                                            : 0;
    return cudaSuccess;
  });
}
cudaError_t __wrap_cudaGetLastError() { return std::exchange(fake::last_error, cudaSuccess); }

cudaError_t __wrap_cudaMalloc(void** data, size_t bytes) { return FakeCalls::allocate(data, bytes); }
cudaError_t __wrap_cudaFree(void* data) { return FakeCalls::release(data); }
cudaError_t __wrap_cudaHostAlloc(void** data, size_t bytes, unsigned) {
  return FakeCalls::allocate_pinned(data, bytes);
}
cudaError_t __wrap_cudaFreeHost(void* data) { return FakeCalls::release_pinned(data); }
cudaError_t __wrap_cudaMemGetInfo(size_t* free, size_t* total) {
  return FakeCalls::run("cudaMemGetInfo", [&](FakeCuda& cuda) {
    const fake::FakeCard& card = cuda.cards.at(static_cast<size_t>(fake::current_device));
    *total = card.total;
    *free = card.total - std::min(card.total, card.used + card.used_by_others);
    return cudaSuccess;
  });
}
cudaError_t __wrap_cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  return FakeCalls::run("cudaMemcpyAsync", [&](FakeCuda&) {
    if (!fake::recording) std::memcpy(target, source, bytes);
    return cudaSuccess;
  });
}
cudaError_t __wrap_cudaMemcpy2DAsync(void* target, size_t target_pitch, const void* source, size_t source_pitch,
                                     size_t width, size_t height, cudaMemcpyKind, cudaStream_t) {
  return FakeCalls::run("cudaMemcpy2DAsync", [&](FakeCuda&) {
    for (size_t row = 0; row < height && !fake::recording; ++row) {
      std::memcpy(static_cast<char*>(target) + row * target_pitch,
                  static_cast<const char*>(source) + row * source_pitch, width);
    }
    return cudaSuccess;
  });
}
cudaError_t __wrap_cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  return FakeCalls::run("cudaMemsetAsync", [&](FakeCuda&) {
    if (value != 0) {
      std::memset(data, value, bytes);
    } else if (!fake::recording) {
      fake::clear(data, bytes);
    }
    return cudaSuccess;
  });
}

cudaError_t __wrap_cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  return FakeCalls::make("cudaStreamCreateWithFlags", "stream", stream);
}
cudaError_t __wrap_cudaStreamDestroy(cudaStream_t stream) {
  return FakeCalls::end("cudaStreamDestroy", "stream", stream);
}
cudaError_t __wrap_cudaStreamSynchronize(cudaStream_t) {
  return fake::nothing_outside_records("cudaStreamSynchronize");
}
cudaError_t __wrap_cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return FakeCalls::make("cudaEventCreateWithFlags", "event", event);
}
cudaError_t __wrap_cudaEventDestroy(cudaEvent_t event) { return FakeCalls::end("cudaEventDestroy", "event", event); }
cudaError_t __wrap_cudaEventRecord(cudaEvent_t, cudaStream_t) { return fake::nothing("cudaEventRecord"); }
cudaError_t __wrap_cudaEventSynchronize(cudaEvent_t) { return fake::nothing_outside_records("cudaEventSynchronize"); }

cudaError_t __wrap_cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  return FakeCalls::run("cudaStreamBeginCapture", [](FakeCuda&) {
    fake::recording = true;
    fake::record_is_broken = false;
    return cudaSuccess;
  });
}
cudaError_t __wrap_cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  fake::recording = false;  // whatever it answers
  *graph = nullptr;
  return FakeCalls::run("cudaStreamEndCapture", [graph](FakeCuda& cuda) {
    if (fake::record_is_broken) return cudaErrorStreamCaptureInvalidated;
    FakeCalls::begin_graph(cuda, graph);
    return cudaSuccess;
  });
}
cudaError_t __wrap_cudaGraphDestroy(cudaGraph_t graph) { return FakeCalls::end("cudaGraphDestroy", "graph", graph); }
cudaError_t __wrap_cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t, unsigned long long) {
  return FakeCalls::make("cudaGraphInstantiate", "record", exec);
}
cudaError_t __wrap_cudaGraphExecDestroy(cudaGraphExec_t exec) {
  return FakeCalls::end("cudaGraphExecDestroy", "record", exec);
}
cudaError_t __wrap_cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) { return fake::nothing("cudaGraphLaunch"); }

cudaError_t __wrap_cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  return FakeCalls::run("cudaFuncGetAttributes", [&](FakeCuda&) {
    *attributes = {};
    attributes->sharedSizeBytes = 1024;
    return cudaSuccess;
  });
}
cudaError_t __wrap_cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) {
  return fake::nothing("cudaFuncSetAttribute");
}
cudaError_t __wrap_cudaOccupancyMaxActiveClusters(int* clusters, const void*, const cudaLaunchConfig_t*) {
  return FakeCalls::run("cudaOccupancyMaxActiveClusters", [&](FakeCuda& cuda) {
    *clusters = cuda.cards.at(static_cast<size_t>(fake::current_device)).clusters;
    return cudaSuccess;
  });
}
cudaError_t __wrap_cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void*, void**) {
  return FakeCalls::launched("cudaLaunchKernelExC", config->gridDim.x);
}
cudaError_t __wrap___cudaLaunchKernel(cudaKernel_t, dim3 grid, dim3, void**, size_t, cudaStream_t) {
  return FakeCalls::launched("cudaLaunchKernel", grid.x);
}
cudaError_t __wrap___cudaGetKernel(cudaKernel_t* kernel, const void*) {
  *kernel = nullptr;
  return cudaSuccess;
}
cudaError_t __wrap_cudaLaunchKernel(const void*, dim3 grid, dim3, void**, size_t, cudaStream_t) {  // before CUDA 13
  return FakeCalls::launched("cudaLaunchKernel", grid.x);
}

// The only entry point that the backend asks the driver for.
CUresult fake_tensor_map_encode(CUtensorMap* map, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                                CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  *map = {};
  return CUDA_SUCCESS;
}
cudaError_t __wrap_cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned, unsigned long long,
                                                    cudaDriverEntryPointQueryResult*) {
  *function = reinterpret_cast<void*>(&fake_tensor_map_encode);
  return cudaSuccess;
}
cudaError_t __wrap_cudaGetDriverEntryPoint(const char*, void** function, unsigned long long,
                                           cudaDriverEntryPointQueryResult*) {
  *function = reinterpret_cast<void*>(&fake_tensor_map_encode);
  return cudaSuccess;
}

cublasStatus_t __wrap_cublasCreate_v2(cublasHandle_t* handle) {
  return fake::blas_status(FakeCalls::make("cublasCreate", "cuBLAS handle", handle));
}
cublasStatus_t __wrap_cublasDestroy_v2(cublasHandle_t handle) {
  return fake::blas_status(FakeCalls::end("cublasDestroy", "cuBLAS handle", handle));
}
cublasStatus_t __wrap_cublasSetStream_v2(cublasHandle_t, cudaStream_t) {
  return fake::blas_status(fake::nothing("cublasSetStream"));
}
cublasStatus_t __wrap_cublasSetWorkspace_v2(cublasHandle_t, void*, size_t) {
  return fake::blas_status(fake::nothing("cublasSetWorkspace"));
}
cublasStatus_t __wrap_cublasSetMathMode(cublasHandle_t, cublasMath_t) {
  return fake::blas_status(fake::nothing("cublasSetMathMode"));
}
cublasStatus_t __wrap_cublasGemmEx(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, const void*,
                                   const void*, cudaDataType, int, const void*, cudaDataType, int, const void*, void*,
                                   cudaDataType, int, cublasComputeType_t, cublasGemmAlgo_t) {
  return fake::blas_status(fake::nothing("cublasGemmEx"));
}

}  // extern "C"
