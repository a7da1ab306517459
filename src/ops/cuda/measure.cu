// What benchmarks need of the device itself: weights of random values, the read roof, and times.
#include <algorithm>
#include <deque>

#include "base/check.h"
#include "ops/cuda/cuda_backend.h"
#include "ops/cuda/device_math.cuh"

namespace tokenmill {
namespace {

__device__ inline uint32_t mix(uint64_t value) {
  value ^= value >> 33;
  value *= 0xff51afd7ed558ccdull;
  value ^= value >> 33;
  value *= 0xc4ceb9fe1a85ec53ull;
  return static_cast<uint32_t>(value >> 32);
}

// The sum of four uniform numbers has a bell's shape; its deviation is sqrt(4 / 12).
__global__ void random_kernel(uint16_t* out, int64_t count, float deviation, uint64_t seed) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += stride) {
    const uint32_t bits = mix(seed * 0x9e3779b97f4a7c15ull + static_cast<uint64_t>(i));
    const float sum = static_cast<float>((bits & 255) + (bits >> 8 & 255) + (bits >> 16 & 255) + (bits >> 24));
    out[i] = to_bf16((sum / 255.0f - 2.0f) * 1.7320508f * deviation);
  }
}

__global__ void __launch_bounds__(256) read_kernel(const uint4* data, int64_t count, uint32_t* sink) {
  constexpr int kUnroll = 8;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  uint32_t sum = 0;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += stride * kUnroll) {
    uint4 values[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) values[u] = i + u * stride < count ? __ldcs(data + i + u * stride) : uint4{};
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) sum ^= values[u].x ^ values[u].y ^ values[u].z ^ values[u].w;
  }
  if (sum == 0x12345678u) *sink = sum;  // never the values' sum by design; keeps the loads
}

class TimingEvent {
 public:
  TimingEvent() { TM_CUDA(cudaEventCreate(&event_)); }
  ~TimingEvent() { cudaEventDestroy(event_); }
  TimingEvent(const TimingEvent&) = delete;
  TimingEvent& operator=(const TimingEvent&) = delete;
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace

struct CudaMarks::Events {
  CudaBackend& backend;
  std::deque<TimingEvent> all;  // made once, used again
  size_t used = 0;
};

CudaMarks::CudaMarks(Backend& backend) : events_(new Events{static_cast<CudaBackend&>(backend), {}}) {}
CudaMarks::~CudaMarks() = default;

void CudaMarks::mark() {
  events_->backend.use_device();
  if (events_->used == events_->all.size()) events_->all.emplace_back();
  TM_CUDA(cudaEventRecord(events_->all[events_->used++].get(), events_->backend.stream()));
}

std::vector<double> CudaMarks::milliseconds() {
  std::vector<double> times;
  if (events_->used > 0) TM_CUDA(cudaEventSynchronize(events_->all[events_->used - 1].get()));
  for (size_t i = 1; i < events_->used; ++i) {
    float milliseconds = 0;
    TM_CUDA(cudaEventElapsedTime(&milliseconds, events_->all[i - 1].get(), events_->all[i].get()));
    times.push_back(static_cast<double>(milliseconds));
  }
  events_->used = 0;
  return times;
}

std::unique_ptr<Weight> make_random_cuda_weight(Backend& backend, int64_t n, int64_t k, float deviation,
                                                uint64_t seed) {
  auto& cuda = static_cast<CudaBackend&>(backend);
  TM_CHECK(n > 0 && k > 0 && k % 8 == 0);
  cuda.use_device();
  auto weight = std::make_unique<CudaWeight>();
  weight->n = n;
  weight->k = weight->stride = k;
  weight->name = "random";
  weight->memory = DeviceMemory(static_cast<size_t>(n * k) * 2);
  weight->bytes = weight->memory.bytes();
  random_kernel<<<1024, 256, 0, cuda.stream()>>>(reinterpret_cast<uint16_t*>(weight->memory.data()), n * k, deviation,
                                                 seed);
  check_launch("random");
  return weight;
}

double measure_cuda_read_bandwidth(Backend& backend, size_t bytes) {
  auto& cuda = static_cast<CudaBackend&>(backend);
  cuda.use_device();
  const DeviceMemory memory(bytes), sink(256);
  random_kernel<<<1024, 256, 0, cuda.stream()>>>(reinterpret_cast<uint16_t*>(memory.data()),
                                                 static_cast<int64_t>(bytes / 2), 1.0f, 7);
  check_launch("random");
  cudaDeviceProp properties{};
  TM_CUDA(cudaGetDeviceProperties(&properties, cuda.device()));
  const unsigned sms = static_cast<unsigned>(properties.multiProcessorCount);
  const TimingEvent begin, end;
  float best = 1e30f;
  for (const unsigned blocks : {4 * sms, 8 * sms, 32 * sms}) {
    for (int run = 0; run < 6; ++run) {
      TM_CUDA(cudaEventRecord(begin.get(), cuda.stream()));
      read_kernel<<<blocks, 256, 0, cuda.stream()>>>(reinterpret_cast<const uint4*>(memory.data()),
                                                     static_cast<int64_t>(bytes / 16),
                                                     reinterpret_cast<uint32_t*>(sink.data()));
      check_launch("read");
      TM_CUDA(cudaEventRecord(end.get(), cuda.stream()));
      TM_CUDA(cudaEventSynchronize(end.get()));
      float milliseconds = 0;
      TM_CUDA(cudaEventElapsedTime(&milliseconds, begin.get(), end.get()));
      best = std::min(best, milliseconds);
    }
  }
  return static_cast<double>(bytes) / (static_cast<double>(best) * 1e-3);
}

}  // namespace tokenmill
