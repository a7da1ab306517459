// Writes GGUF version 3 files for tests (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), in memory.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace tokenmill::testing {

class GgufWriter {
 public:
  void add_u32(std::string_view key, uint32_t value) { add(key, 4, raw(value)); }
  void add_i32(std::string_view key, int32_t value) { add(key, 5, raw(value)); }
  void add_u64(std::string_view key, uint64_t value) { add(key, 10, raw(value)); }
  void add_f32(std::string_view key, float value) { add(key, 6, raw(value)); }
  void add_bool(std::string_view key, bool value) { add(key, 7, raw(static_cast<uint8_t>(value))); }
  void add_string(std::string_view key, std::string_view value) { add(key, 8, string(value)); }
  void add_strings(std::string_view key, const std::vector<std::string>& values) {
    std::string data;
    for (const std::string& value : values) data += string(value);
    add_array(key, 8, values.size(), data);
  }
  void add_u32s(std::string_view key, const std::vector<uint32_t>& values) {
    std::string data;
    for (uint32_t value : values) data += raw(value);
    add_array(key, 4, values.size(), data);
  }
  void add_i32s(std::string_view key, const std::vector<int32_t>& values) {
    std::string data;
    for (int32_t value : values) data += raw(value);
    add_array(key, 5, values.size(), data);
  }
  void add_f32s(std::string_view key, const std::vector<float>& values) {
    std::string data;
    for (float value : values) data += raw(value);
    add_array(key, 6, values.size(), data);
  }
  void add_bools(std::string_view key, const std::vector<bool>& values) {
    std::string data;
    for (bool value : values) data += raw(static_cast<uint8_t>(value));
    add_array(key, 7, values.size(), data);
  }
  // shape: outermost first; type: ggml's number; data: as the file shall hold it.
  void add_tensor(std::string_view name, uint32_t type, std::vector<int64_t> shape, std::string data) {
    tensors_.push_back({std::string(name), type, std::move(shape), std::move(data)});
  }
  // Tests of broken files: drop a key or tensor of that name.
  void remove(std::string_view name) {
    std::erase_if(entries_, [&](const Entry& entry) { return entry.key == name; });
    std::erase_if(tensors_, [&](const Tensor& tensor) { return tensor.name == name; });
  }

  std::string bytes() const {
    constexpr size_t kAlignment = 32;
    std::string out = "GGUF" + raw(uint32_t{3}) + raw(uint64_t{tensors_.size()}) + raw(uint64_t{entries_.size()});
    for (const Entry& entry : entries_) out += string(entry.key) + entry.value;
    uint64_t offset = 0;
    for (const Tensor& tensor : tensors_) {
      out += string(tensor.name) + raw(static_cast<uint32_t>(tensor.shape.size()));
      for (size_t d = tensor.shape.size(); d-- > 0;) out += raw(static_cast<uint64_t>(tensor.shape[d]));
      out += raw(tensor.type) + raw(offset);
      offset += padded(tensor.data.size(), kAlignment);
    }
    out.resize(padded(out.size(), kAlignment), '\0');
    for (const Tensor& tensor : tensors_) {
      out += tensor.data;
      out.resize(padded(out.size(), kAlignment), '\0');
    }
    return out;
  }

 private:
  struct Entry {
    std::string key, value;
  };
  struct Tensor {
    std::string name;
    uint32_t type;
    std::vector<int64_t> shape;
    std::string data;
  };
  static size_t padded(size_t size, size_t alignment) { return (size + alignment - 1) / alignment * alignment; }
  template <class T>
  static std::string raw(T value) {
    std::string out(sizeof value, '\0');
    std::memcpy(out.data(), &value, sizeof value);
    return out;
  }
  static std::string string(std::string_view text) { return raw(uint64_t{text.size()}) + std::string(text); }
  // A key set twice has its last value.
  void add(std::string_view key, uint32_t type, const std::string& value) {
    std::erase_if(entries_, [&](const Entry& entry) { return entry.key == key; });
    entries_.push_back({std::string(key), raw(type) + value});
  }
  void add_array(std::string_view key, uint32_t type, size_t count, const std::string& data) {
    add(key, 9, raw(type) + raw(uint64_t{count}) + data);
  }

  std::vector<Entry> entries_;
  std::vector<Tensor> tensors_;
};

}  // namespace tokenmill::testing
