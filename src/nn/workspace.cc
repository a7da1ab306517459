#include "nn/workspace.h"

#include <algorithm>

#include "base/check.h"

namespace tokenmill {

namespace {
constexpr size_t kAlignment = 64;
}  // namespace

Workspace::Workspace(Backend& backend, size_t bytes)
    : backend_(&backend), memory_(backend.allocate(bytes)), capacity_(bytes) {}

Workspace::~Workspace() {
  if (backend_) backend_->free(memory_);
}

Matrix Workspace::take(int64_t rows, int64_t cols, DType dtype) {
  TM_CHECK(rows >= 0 && cols >= 0);
  const size_t bytes = static_cast<size_t>(rows) * static_cast<size_t>(cols) * size_of(dtype);
  const size_t begin = used_;
  used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  peak_ = std::max(peak_, used_);
  if (!backend_) return {nullptr, rows, cols, cols, dtype};
  TM_CHECK(used_ <= capacity_);
  return {memory_ + begin, rows, cols, cols, dtype};
}

void Workspace::rewind(size_t mark) {
  TM_CHECK(mark <= used_);
  used_ = mark;
}

}  // namespace tokenmill
