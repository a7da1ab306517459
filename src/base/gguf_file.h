// A GGUF file opened: its metadata and the places of its tensors, every bound checked before it is used.
//
// Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian. Strings and
// tensor data are views into the mapping; nothing but the header is read. What the metadata mean is the readers' affair
// (text: tokenizer.*, checkpoint: the rest).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/mapped_file.h"
#include "base/page_memory.h"

namespace tokenmill {

// Value types as GGUF numbers them.
enum class GgufType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

// A metadata value: where it lies in the file and how to read it. Arrays are of one scalar or string type.
struct GgufValue {
  GgufType type = GgufType::kUint8;  // an array's: its elements'
  bool is_array = false;
  uint64_t count = 1;               // elements of an array
  std::span<const std::byte> data;  // strings: each a 64-bit length and its bytes
};

struct GgufTensor {
  std::string name;
  uint32_t type = 0;           // ggml's number: 0 F32, 1 F16, 2 Q4_0, …
  std::vector<int64_t> shape;  // outermost first (GGUF stores the innermost first)
  uint64_t elements = 0;
  std::span<const std::byte> data;  // exact where the type's block size is known, else up to the next tensor's data
};

class GgufFile {
 public:
  // Throws Error(kValue) naming the file, the key or tensor, and the remedy.
  explicit GgufFile(const std::string& path);
  GgufFile(GgufFile&&) = default;

  const std::string& path() const { return file_.path(); }
  const MappedFile& file() const { return file_; }
  uint32_t version() const { return version_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }  // in the file's order
  const GgufTensor* find_tensor(std::string_view name) const;          // nullptr where there is none

  const std::vector<std::string>& keys() const { return keys_; }  // in the file's order
  const GgufValue* find(std::string_view key) const;              // nullptr where there is none

  // nullopt where the key is absent; Error(kValue) naming file, key and both types where it is of another kind or, for
  // integers, outside int64. get_float takes integers too.
  std::optional<int64_t> get_int(std::string_view key) const;
  std::optional<double> get_float(std::string_view key) const;
  std::optional<bool> get_bool(std::string_view key) const;
  std::optional<std::string_view> get_string(std::string_view key) const;
  std::optional<PageVector<int64_t>> get_ints(std::string_view key) const;
  std::optional<PageVector<float>> get_floats(std::string_view key) const;
  std::optional<std::vector<bool>> get_bools(std::string_view key) const;
  std::optional<PageVector<std::string_view>> get_strings(std::string_view key) const;  // views into the mapping

  // As get_*, but an absent key is an Error that names it.
  int64_t require_int(std::string_view key) const;
  double require_float(std::string_view key) const;
  std::string_view require_string(std::string_view key) const;

 private:
  struct Reader;
  void read_metadata(Reader& reader, uint64_t count);
  void read_tensors(Reader& reader, uint64_t count);
  void place_tensors(Reader& reader, const std::vector<uint64_t>& offsets);
  [[noreturn]] void fail(const std::string& what) const;
  [[noreturn]] void fail_type(std::string_view key, const GgufValue& value, const char* wanted) const;
  int64_t int_at(std::string_view key, const GgufValue& value, uint64_t index) const;

  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
  };
  MappedFile file_;
  uint32_t version_ = 0;
  std::vector<std::string> keys_;
  std::unordered_map<std::string, GgufValue, Hash, std::equal_to<>> values_;
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string, size_t, Hash, std::equal_to<>> tensor_index_;
};

}  // namespace tokenmill
