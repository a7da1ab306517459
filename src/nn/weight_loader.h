// Takes a model's weights out of its checkpoint, one after another: packs each, gives its source pages back, and tells
// how many files are done.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "ops/backend.h"

namespace tokenmill {

// A vector of floats in backend memory: norm weights.
class DeviceVector {
 public:
  DeviceVector() = default;
  DeviceVector(Backend& backend, const std::vector<float>& values);
  ~DeviceVector();
  DeviceVector(DeviceVector&& other) noexcept;
  DeviceVector& operator=(DeviceVector&& other) noexcept;

  const float* data() const { return reinterpret_cast<const float*>(memory_); }
  size_t bytes() const { return bytes_; }

 private:
  Backend* backend_ = nullptr;
  std::byte* memory_ = nullptr;
  size_t bytes_ = 0;
};

class WeightLoader {
 public:
  using Progress = std::function<void(int64_t done_files, int64_t total_files)>;

  // progress may be null; it is called after each tensor, and what it throws ends the loading. All four must outlive
  // the loader.
  WeightLoader(const Checkpoint& checkpoint, Backend& backend, Packing packing, Progress progress);

  const ModelConfig& config() const { return checkpoint_.config(); }
  Packing packing() const { return packing_; }
  DType product_input() const { return backend_.product_input(packing_); }

  struct Part {
    std::string name;  // without ".weight"
    int64_t rows = 0;
  };
  // The row-wise stack of NAME.weight [rows, k] of all parts, with the stack of NAME.bias [rows] where has_bias.
  std::unique_ptr<Weight> linear(std::initializer_list<Part> parts, int64_t k, bool has_bias);
  // NAME.weight [size], fp32.
  DeviceVector norm(const std::string& name, int64_t size);

  // The bytes all weights loaded so far hold.
  size_t weight_bytes() const { return weight_bytes_; }
  // All weights are loaded: reports files of which something was not needed as done too.
  void finish();

 private:
  // A vector of F32, F16 or BF16 as floats. Throws Error(kValue) naming the tensor when it holds NaN or infinity.
  std::vector<float> vector(const std::string& name, int64_t size);
  void done_with(const RawTensor& tensor);

  const Checkpoint& checkpoint_;
  Backend& backend_;
  Packing packing_;
  Progress progress_;
  std::vector<int64_t> tensors_left_;  // a file
  int64_t files_done_ = 0;
  size_t weight_bytes_ = 0;
};

}  // namespace tokenmill
