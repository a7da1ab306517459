// Writes safetensors files for tests, in memory.
#pragma once

#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace tokenmill::testing {

struct SafetensorsEntry {
  std::string name, dtype;
  std::vector<int64_t> shape;
  std::string data;
};

inline std::string safetensors_file(const std::string& header, const std::string& data) {
  std::string out(8, '\0');
  const uint64_t size = header.size();
  std::memcpy(out.data(), &size, sizeof size);
  return out + header + data;
}

inline std::string safetensors_bytes(const std::vector<SafetensorsEntry>& tensors) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  std::string data;
  for (const SafetensorsEntry& tensor : tensors) {
    const size_t begin = data.size();
    data += tensor.data;
    header[tensor.name] = {{"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {begin, data.size()}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return safetensors_file(text, data);
}

}  // namespace tokenmill::testing
