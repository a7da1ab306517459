// Weights on their way to the device: rows are made in parallel in pinned slots and copied from there, so that one slot
// is filled while the others are under way.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/thread_pool.h"
#include "ops/cuda/cuda_common.h"

namespace tokenmill {

class WeightUpload {
 public:
  WeightUpload(cudaStream_t stream, int num_threads);  // at most 16; 0: as many as this process may use

  int num_threads() const { return pool_.num_threads(); }
  // Calls make(first, count, out, worker) for runs of rows that together are [0, rows), in parallel and in no order,
  // and copies what it writes to `target`, row_bytes each. Returns when all rows are made; the last copies may still
  // run. make() must not throw.
  template <class Make>
  void rows(int64_t rows, size_t row_bytes, std::byte* target, Make&& make) {
    const int64_t chunk = std::max<int64_t>(1, static_cast<int64_t>(kSlotBytes / row_bytes));
    const int64_t piece_rows = std::max<int64_t>(1, static_cast<int64_t>(kPieceBytes / row_bytes));
    for (int64_t first = 0; first < rows; first += chunk) {
      const int64_t count = std::min(chunk, rows - first);
      std::byte* const slot = next_slot(static_cast<size_t>(count) * row_bytes);
      pool_.parallel_for((count + piece_rows - 1) / piece_rows, [&](int64_t piece, int worker) {
        const int64_t begin = piece * piece_rows;
        make(first + begin, std::min(count - begin, piece_rows), slot + static_cast<size_t>(begin) * row_bytes, worker);
      });
      send(target + static_cast<size_t>(first) * row_bytes, static_cast<size_t>(count) * row_bytes);
    }
  }

 private:
  static constexpr size_t kSlotBytes = size_t{16} << 20, kPieceBytes = size_t{256} << 10;
  static constexpr int kSlots = 4;

  std::byte* next_slot(size_t bytes);  // waits until its last copy is done
  void send(std::byte* target, size_t bytes);

  cudaStream_t stream_;
  ThreadPool pool_;
  struct Slot {
    PinnedMemory memory;
    CudaEvent copied;
    std::byte* data = nullptr;
  };
  Slot slots_[kSlots];
  int current_ = 0;
};

}  // namespace tokenmill
