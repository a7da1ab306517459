#include "checkpoint/tensor_store.h"

#include <cstring>
#include <new>
#include <stdexcept>

#include "base/check.h"
#include "tokenmill/error.h"

namespace tokenmill {

namespace {

constexpr size_t kMaxAlignment = 4;

size_t alignment_of(WeightType type) { return type == WeightType::kF32 ? 4 : 2; }

}  // namespace

int64_t TensorStore::add_file(const MappedFile& file) {
  files_.push_back(&file);
  return static_cast<int64_t>(files_.size()) - 1;
}

void TensorStore::add(RawTensor tensor, int64_t file, std::span<const std::byte> source, std::function<Bytes()> make) {
  static_assert(kMaxAlignment <= alignof(std::max_align_t));
  // Readers load elements through pointers of their type; a file may place them anywhere.
  if (!make && reinterpret_cast<uintptr_t>(source.data()) % alignment_of(tensor.type) != 0) {
    make = [source] { return Bytes(source.begin(), source.end()); };
  }
  if (!make) {
    tensor.data = source.data();
    if (file >= 0) tensor.file = files_.at(static_cast<size_t>(file));
  }
  const std::string name = tensor.name;
  const auto [it, inserted] = entries_.emplace(name, Entry{std::move(tensor), file, source, std::move(make)});
  TM_CHECK(inserted);
  order_.push_back(&it->second.tensor);
}

void TensorStore::materialize(Entry& entry) const {
  try {
    auto bytes = std::make_shared<const Bytes>(entry.make());
    TM_CHECK(bytes->size() == entry.tensor.bytes());
    entry.tensor.data = bytes->data();
    entry.tensor.owned = std::move(bytes);
  } catch (const std::bad_alloc&) {
    throw Error(ErrorKind::kRuntime, "Not enough memory: tensor '" + entry.tensor.name + "' needs " +
                                         std::to_string(entry.tensor.bytes()) + " bytes");
  } catch (const std::length_error&) {
    throw Error(ErrorKind::kRuntime, "Not enough memory: tensor '" + entry.tensor.name + "' is too large");
  }
  if (!entry.source.empty()) files_.at(static_cast<size_t>(entry.file))->release(entry.source);
}

const RawTensor* TensorStore::find(std::string_view canonical_name) const {
  const std::lock_guard lock(mutex_);
  auto it = entries_.find(canonical_name);
  if (it == entries_.end()) return nullptr;
  Entry& entry = it->second;
  if (entry.tensor.data == nullptr) materialize(entry);
  return &entry.tensor;
}

std::vector<const RawTensor*> TensorStore::tensors() const { return order_; }

TensorStore::Entry& TensorStore::entry_of(const RawTensor& tensor) const {
  auto it = entries_.find(tensor.name);
  TM_CHECK(it != entries_.end() && &it->second.tensor == &tensor);
  return it->second;
}

void TensorStore::release(const RawTensor& tensor) const {
  const std::lock_guard lock(mutex_);
  Entry& entry = entry_of(tensor);
  if (entry.make) {
    entry.tensor.data = nullptr;  // find() makes it again
    entry.tensor.owned.reset();
  } else {
    files_.at(static_cast<size_t>(entry.file))->release(entry.source);
  }
}

int64_t TensorStore::num_files() const { return files_.empty() ? 1 : static_cast<int64_t>(files_.size()); }

int64_t TensorStore::file_of(const RawTensor& tensor) const { return entry_of(tensor).file; }

std::vector<std::byte> unpermute_heads(std::span<const std::byte> rows, int64_t heads, int64_t head_dim,
                                       size_t row_bytes) {
  TM_CHECK(heads > 0 && head_dim % 2 == 0);
  TM_CHECK(rows.size() == static_cast<size_t>(heads * head_dim) * row_bytes);
  std::vector<std::byte> out(rows.size());
  const int64_t half = head_dim / 2;
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t i = 0; i < half; ++i) {
      for (int64_t j = 0; j < 2; ++j) {
        const auto from = static_cast<size_t>(head * head_dim + 2 * i + j);
        const auto to = static_cast<size_t>(head * head_dim + j * half + i);
        std::memcpy(out.data() + to * row_bytes, rows.data() + from * row_bytes, row_bytes);
      }
    }
  }
  return out;
}

std::vector<std::byte> add_one_f32(std::span<const std::byte> weights, WeightType type) {
  TM_CHECK(!info(type).quantized);
  const auto size = static_cast<size_t>(info(type).block_bytes);
  const size_t count = weights.size() / size;
  std::vector<std::byte> out(count * sizeof(float));
  for (size_t i = 0; i < count; ++i) {
    float value;
    if (type == WeightType::kF32) {
      std::memcpy(&value, weights.data() + i * size, size);
    } else {
      uint16_t half;
      std::memcpy(&half, weights.data() + i * size, size);
      value = type == WeightType::kF16 ? f16_to_f32(half) : bf16_to_f32(half);
    }
    value += 1;
    std::memcpy(out.data() + i * sizeof value, &value, sizeof value);
  }
  return out;
}

}  // namespace tokenmill
