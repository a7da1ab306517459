// Scratch memory of one step: a bump allocator over one backend allocation made at start. The forward pass allocates
// nothing else.
//
//   [ hidden | layer scratch ............ ]      mark() before the layers, rewind() after them: what follows
//   [ hidden | gathered rows | logits ... ]      reuses their space
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/tensor.h"
#include "ops/backend.h"

namespace tokenmill {

class Workspace {
 public:
  // Measures: take() hands out null matrices and only bytes_used() and bytes_peak() mean anything.
  Workspace() = default;
  // Throws Error(kRuntime) when the backend cannot reserve it. The backend must outlive the workspace.
  Workspace(Backend& backend, size_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // A [rows, cols] matrix, 64-byte aligned, contents undefined. Running out breaks an invariant: sizes are known at
  // start.
  Matrix take(int64_t rows, int64_t cols, DType dtype = DType::kF32);

  size_t mark() const { return used_; }
  void rewind(size_t mark);
  void reset() { rewind(0); }

  size_t bytes_used() const { return used_; }
  size_t bytes_peak() const { return peak_; }
  size_t capacity() const { return capacity_; }

 private:
  Backend* backend_ = nullptr;  // null: measuring
  std::byte* memory_ = nullptr;
  size_t capacity_ = 0, used_ = 0, peak_ = 0;
};

}  // namespace tokenmill
