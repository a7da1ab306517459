#include "nn/weight_loader.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/dtype.h"
#include "tokenmill/error.h"

namespace tokenmill {

DeviceVector::DeviceVector(Backend& backend, const std::vector<float>& values)
    : backend_(&backend),
      memory_(backend.allocate(values.size() * sizeof(float))),
      bytes_(values.size() * sizeof(float)) {
  backend.copy_from_host(memory_, values.data(), bytes_);
}

DeviceVector::~DeviceVector() {
  if (memory_) backend_->free(memory_);
}

DeviceVector::DeviceVector(DeviceVector&& other) noexcept
    : backend_(other.backend_),
      memory_(std::exchange(other.memory_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

DeviceVector& DeviceVector::operator=(DeviceVector&& other) noexcept {
  std::swap(backend_, other.backend_);
  std::swap(memory_, other.memory_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

WeightLoader::WeightLoader(const Checkpoint& checkpoint, Backend& backend, Packing packing, Progress progress)
    : checkpoint_(checkpoint), backend_(backend), packing_(packing), progress_(std::move(progress)) {
  tensors_left_.resize(static_cast<size_t>(std::max<int64_t>(checkpoint.num_files(), 1)));
  for (const RawTensor* tensor : checkpoint.tensors()) {
    ++tensors_left_.at(static_cast<size_t>(checkpoint.file_of(*tensor)));
  }
}

std::unique_ptr<Weight> WeightLoader::linear(std::initializer_list<Part> parts, int64_t k, bool has_bias) {
  std::vector<const RawTensor*> tensors;
  std::vector<float> bias;
  for (const Part& part : parts) {
    tensors.push_back(&checkpoint_.get(part.name + ".weight", {part.rows, k}));
    if (!has_bias) continue;
    const std::vector<float> values = vector(part.name + ".bias", part.rows);
    bias.insert(bias.end(), values.begin(), values.end());
  }
  std::unique_ptr<Weight> weight;
  try {
    weight = backend_.pack(tensors, bias, packing_);
  } catch (const Error& error) {  // the backend knows tensors, not where they came from
    throw Error(error.kind(), checkpoint_.resolved_path() + ": " + error.what());
  }
  weight_bytes_ += weight->bytes;
  for (const RawTensor* tensor : tensors) done_with(*tensor);
  return weight;
}

DeviceVector WeightLoader::norm(const std::string& name, int64_t size) {
  DeviceVector weight(backend_, vector(name + ".weight", size));
  weight_bytes_ += weight.bytes();
  return weight;
}

std::vector<float> WeightLoader::vector(const std::string& name, int64_t size) {
  const RawTensor& tensor = checkpoint_.get(name, {size});
  std::vector<float> values(static_cast<size_t>(size));
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t half = 0;
    switch (tensor.type) {
      case WeightType::kF32:
        std::memcpy(&values[i], tensor.data + i * 4, 4);
        break;
      case WeightType::kF16:
      case WeightType::kBF16:
        std::memcpy(&half, tensor.data + i * 2, 2);
        values[i] = tensor.type == WeightType::kF16 ? f16_to_f32(half) : bf16_to_f32(half);
        break;
      default:
        throw Error(ErrorKind::kUnsupported, checkpoint_.resolved_path() + ": tensor " + name +
                                                 " is a vector of type " + info(tensor.type).name +
                                                 "; vectors must be F32, F16 or BF16.");
    }
    if (!std::isfinite(values[i])) {
      throw Error(ErrorKind::kValue, checkpoint_.resolved_path() + ": tensor " + name +
                                         " holds NaN or infinity (value " + std::to_string(i) +
                                         "); the file is damaged, fetch it again.");
    }
  }
  done_with(tensor);
  return values;
}

void WeightLoader::done_with(const RawTensor& tensor) {
  checkpoint_.release(tensor);
  if (--tensors_left_.at(static_cast<size_t>(checkpoint_.file_of(tensor))) == 0) ++files_done_;
  if (progress_) progress_(files_done_, checkpoint_.num_files());
}

void WeightLoader::finish() {
  const int64_t total = checkpoint_.num_files();
  if (files_done_ == total) return;
  files_done_ = total;
  if (progress_) progress_(total, total);
}

}  // namespace tokenmill
