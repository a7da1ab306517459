// CUDA cards that are not there: the calls of the CUDA runtime and of cuBLAS that the backend makes, answered on the
// host, so that what goes wrong with a card can be tested where there is none. The test's linker puts them in the place
// of the real ones (tests/cuda/CMakeLists.txt); the backend itself is the one that is shipped.
//
// Memory is the host's and copies copy; kernels, products and recorded steps do nothing, so that what is read back of
// them is zero: token 0, logprob 0.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace tokenmill::testing {

struct FakeCard {
  std::string name = "Fake H100";
  int major = 9, minor = 0, num_sms = 132;
  int clusters = 30;                        // of a kernel, that it holds at a time
  size_t total = size_t{80} << 30;          // bytes
  size_t used_by_others = size_t{1} << 29;  // other processes' and the driver's own
  size_t used = 0;                          // by this process
};

// The process's state of CUDA. One at a time: install() it, then use the backend, from any thread.
class FakeCuda {
 public:
  FakeCuda();
  ~FakeCuda();
  FakeCuda(const FakeCuda&) = delete;
  FakeCuda& operator=(const FakeCuda&) = delete;

  std::vector<FakeCard> cards = std::vector<FakeCard>(1);
  int driver_version = CUDART_VERSION;
  // What a call answers instead of doing its work; cudaSuccess: its work. Called under the lock.
  std::function<cudaError_t(std::string_view call)> answer;
  // Called under the lock with each launch's device and number of blocks in x.
  std::function<void(int device, unsigned blocks)> on_launch;

  void set_answer(std::function<cudaError_t(std::string_view call)> value);  // while others use the backend
  std::map<std::string, int> calls() const;                                  // so far, by name
  // What has been made and not been given back: memory, pinned memory, streams, events, graphs, cuBLAS handles.
  int64_t num_held() const;
  size_t bytes_used(int device = 0) const;

 private:
  friend struct FakeCalls;
  mutable std::mutex mutex_;
  std::map<std::string, int> calls_, held_;
  struct Block {
    size_t bytes;
    int device;
  };
  std::map<void*, Block> memory_;  // the device's
  std::map<void*, size_t> pinned_;
};

}  // namespace tokenmill::testing
