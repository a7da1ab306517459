// Facts about a device that are looked up once: a process may have cards of several kinds.
#pragma once

#include <array>
#include <atomic>

#include "ops/cuda/cuda_common.h"

namespace tokenmill {

// A number of at least 0 for each device, such as how many blocks of one kernel it holds at a time.
class PerDevice {
 public:
  // The current device's, by find() where it is not known yet. Threads may ask, and find, at once.
  template <class Find>
  int get(Find&& find) {
    int device = 0;
    TM_CUDA(cudaGetDevice(&device));
    if (device < 0 || device >= kDevicesMax) return find();
    std::atomic<int>& known = known_[static_cast<size_t>(device)];
    if (known.load() == 0) known.store(find() + 1);
    return known.load() - 1;
  }

 private:
  static constexpr int kDevicesMax = 64;               // of those beyond it is asked every time
  std::array<std::atomic<int>, kDevicesMax> known_{};  // the number plus 1; 0: not known
};

}  // namespace tokenmill
