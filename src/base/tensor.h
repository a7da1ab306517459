// Views of tensors: a pointer, a type and a shape; nothing here owns memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/dtype.h"

namespace tokenmill {

class MappedFile;

// A row-major matrix in backend memory; row i starts `i * stride` elements after data.
struct Matrix {
  void* data = nullptr;
  int64_t rows = 0, cols = 0;
  int64_t stride = 0;  // elements, >= cols
  DType dtype = DType::kF32;

  template <class T>
  T* row(int64_t i) const {
    return static_cast<T*>(data) + i * stride;
  }
  Matrix slice_rows(int64_t begin, int64_t count) const {
    return {static_cast<std::byte*>(data) + begin * stride * static_cast<int64_t>(size_of(dtype)), count, cols, stride,
            dtype};
  }
};

// One weight tensor of a checkpoint in host memory: rows of whole blocks, row-major, rows contiguous.
struct RawTensor {
  std::string name;  // canonical (checkpoint/checkpoint.h), for messages
  WeightType type = WeightType::kF32;
  std::vector<int64_t> shape;        // outermost first: a linear layer is [out_features, in_features]
  const std::byte* data = nullptr;   // inside a mapped file, or inside `owned`
  const MappedFile* file = nullptr;  // the former: who reads all of it once may read it faster than by its pages
  std::shared_ptr<const std::vector<std::byte>> owned;

  int64_t rows() const { return shape.size() > 1 ? shape[0] : 1; }
  int64_t cols() const { return shape.empty() ? 1 : shape.back(); }
  size_t row_bytes() const {
    return static_cast<size_t>(cols() / info(type).block_values) * static_cast<size_t>(info(type).block_bytes);
  }
  size_t bytes() const { return row_bytes() * static_cast<size_t>(rows()); }
};

}  // namespace tokenmill
