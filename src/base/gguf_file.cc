#include "base/gguf_file.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <utility>

#include "base/printable.h"
#include "tokenmill/error.h"

namespace tokenmill {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF values are read as they lie in the file");

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr uint64_t kKeyBytesMax = 65535, kTensorNameBytesMax = 1024;
constexpr uint64_t kDefaultAlignment = 32, kAlignmentMax = 1 << 20;
constexpr uint32_t kDimensionsMax = 4;
constexpr size_t kMessageBytesMax = 480;
constexpr const char* kDamaged = "; the file is damaged or cut short: download it again";

// Bytes of one scalar; 0 for strings, arrays and what GGUF does not know.
uint64_t scalar_bytes(GgufType type) {
  switch (type) {
    case GgufType::kUint8:
    case GgufType::kInt8:
    case GgufType::kBool:
      return 1;
    case GgufType::kUint16:
    case GgufType::kInt16:
      return 2;
    case GgufType::kUint32:
    case GgufType::kInt32:
    case GgufType::kFloat32:
      return 4;
    case GgufType::kUint64:
    case GgufType::kInt64:
    case GgufType::kFloat64:
      return 8;
    default:
      return 0;
  }
}

const char* type_name(GgufType type) {
  constexpr const char* kNames[] = {"uint8", "int8",   "uint16", "int16",  "uint32", "int32",  "float32",
                                    "bool",  "string", "array",  "uint64", "int64",  "float64"};
  return static_cast<size_t>(type) < std::size(kNames) ? kNames[static_cast<size_t>(type)] : "unknown";
}

struct BlockSize {
  uint64_t values, bytes;
};

// Values and bytes of one block by ggml's type number; {0, 0} where it is not known here (or was removed from ggml).
BlockSize block_size(uint32_t type) {
  constexpr BlockSize kSizes[] = {
      {1, 4},    {1, 2},    {32, 18},  {32, 20},   {0, 0},     {0, 0},     {32, 22},   {32, 24},    // F32 .. Q5_1
      {32, 34},  {32, 36},  {256, 84}, {256, 110}, {256, 144}, {256, 176}, {256, 210}, {256, 292},  // Q8_0 .. Q8_K
      {256, 66}, {256, 74}, {256, 98}, {256, 50},  {32, 18},   {256, 110}, {256, 82},  {256, 136},  // IQ*
      {1, 1},    {1, 2},    {1, 4},    {1, 8},     {1, 8},     {256, 56},  {1, 2},                  // I8 .. BF16
  };
  return type < std::size(kSizes) ? kSizes[type] : BlockSize{0, 0};
}

uint32_t byteswap(uint32_t value) {
  return value >> 24 | (value >> 8 & 0xff00u) | (value << 8 & 0xff0000u) | value << 24;
}

template <class T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

}  // namespace

// Walks the header; every read is checked against the bytes that are left.
struct GgufFile::Reader {
  const GgufFile& owner;
  std::span<const std::byte> bytes;
  size_t at = 0;

  uint64_t left() const { return bytes.size() - at; }

  std::span<const std::byte> take(uint64_t size, const std::string& what) {
    if (size > left()) {
      owner.fail(what + " needs " + std::to_string(size) + " bytes, but only " + std::to_string(left()) + " are left" +
                 kDamaged);
    }
    const auto span = bytes.subspan(at, static_cast<size_t>(size));
    at += static_cast<size_t>(size);
    return span;
  }
  template <class T>
  T scalar(const std::string& what) {
    return load<T>(take(sizeof(T), what).data());
  }
  std::string_view string(uint64_t size_max, const std::string& what) {
    const uint64_t size = scalar<uint64_t>("the length of " + what);
    if (size > size_max) {
      owner.fail(what + " has " + std::to_string(size) + " bytes, more than the " + std::to_string(size_max) +
                 " allowed" + kDamaged);
    }
    const auto span = take(size, what);
    return {reinterpret_cast<const char*>(span.data()), span.size()};
  }
  // Walks `count` strings and returns their bytes. Vocabularies have 10^5 of them, so messages are made on failure
  // only.
  std::span<const std::byte> strings(uint64_t count, const std::string& what) {
    if (count > left() / 8) owner.fail(what + " claims " + std::to_string(count) + " strings" + kDamaged);
    const size_t begin = at;
    for (uint64_t i = 0; i < count; ++i) {
      if (left() < 8 || load<uint64_t>(bytes.data() + at) > left() - 8) {
        owner.fail(what + " is cut short at string " + std::to_string(i) + kDamaged);
      }
      at += 8 + static_cast<size_t>(load<uint64_t>(bytes.data() + at));
    }
    return bytes.subspan(begin, at - begin);
  }
  GgufValue value(const std::string& key) {
    const std::string what = "the value of '" + key + "'";
    GgufValue value;
    value.type = static_cast<GgufType>(scalar<uint32_t>("the type of '" + key + "'"));
    if (value.type == GgufType::kArray) {
      value.is_array = true;
      value.type = static_cast<GgufType>(scalar<uint32_t>("the element type of '" + key + "'"));
      value.count = scalar<uint64_t>("the length of '" + key + "'");
    }
    const uint64_t size = scalar_bytes(value.type);
    if (value.type == GgufType::kString) {
      value.data = strings(value.count, what);
    } else if (size == 0) {
      owner.fail("key '" + key + "' has value type " + std::to_string(static_cast<uint32_t>(value.type)) +
                 ", which GGUF does not define here" + kDamaged);
    } else {
      if (value.count > left() / size) {
        owner.fail(what + " claims " + std::to_string(value.count) + " elements" + kDamaged);
      }
      value.data = take(value.count * size, what);
    }
    return value;
  }
};

GgufFile::GgufFile(const std::string& path) : file_(path) {
  Reader reader{*this, file_.bytes()};
  if (file_.size() < 24 || reader.scalar<uint32_t>("the magic number") != kMagic) {
    fail("is not a GGUF file (it does not begin with 'GGUF'); name a .gguf file or a model folder");
  }
  version_ = reader.scalar<uint32_t>("the version");
  if (version_ != 2 && version_ != 3) {
    fail("has GGUF version " + std::to_string(version_) +
         (byteswap(version_) == 2 || byteswap(version_) == 3 ? " (big-endian)" : "") +
         "; this build reads little-endian versions 2 and 3: convert the model again");
  }
  const auto tensor_count = reader.scalar<uint64_t>("the number of tensors");
  const auto key_count = reader.scalar<uint64_t>("the number of keys");
  read_metadata(reader, key_count);
  read_tensors(reader, tensor_count);
}

void GgufFile::read_metadata(Reader& reader, uint64_t count) {
  constexpr uint64_t kEntryBytesMin = 8 + 4 + 1;  // key length, type, one byte
  if (count > reader.left() / kEntryBytesMin) fail("claims " + std::to_string(count) + " keys" + kDamaged);
  keys_.reserve(static_cast<size_t>(count));
  for (uint64_t i = 0; i < count; ++i) {
    std::string key(reader.string(kKeyBytesMax, "key " + std::to_string(i)));
    if (key.empty()) fail("key " + std::to_string(i) + " is empty" + kDamaged);
    GgufValue value = reader.value(key);
    if (!values_.emplace(key, value).second) fail("has the key '" + key + "' twice; convert the model again");
    keys_.push_back(std::move(key));
  }
}

void GgufFile::read_tensors(Reader& reader, uint64_t count) {
  constexpr uint64_t kEntryBytesMin = 8 + 4 + 4 + 8;  // name length, dimensions, type, offset
  if (count > reader.left() / kEntryBytesMin) fail("claims " + std::to_string(count) + " tensors" + kDamaged);
  tensors_.reserve(static_cast<size_t>(count));
  std::vector<uint64_t> offsets;
  for (uint64_t i = 0; i < count; ++i) {
    GgufTensor tensor;
    tensor.name = std::string(reader.string(kTensorNameBytesMax, "the name of tensor " + std::to_string(i)));
    const std::string what = "tensor '" + tensor.name + "'";
    const auto dimensions = reader.scalar<uint32_t>(what);
    if (dimensions == 0 || dimensions > kDimensionsMax) {
      fail(what + " has " + std::to_string(dimensions) + " dimensions, but 1 to " + std::to_string(kDimensionsMax) +
           " are allowed" + kDamaged);
    }
    tensor.elements = 1;
    for (uint32_t d = 0; d < dimensions; ++d) {
      const auto size = reader.scalar<uint64_t>(what);
      if (size == 0 || size > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) / tensor.elements) {
        fail(what + " has the impossible dimension " + std::to_string(size) + kDamaged);
      }
      tensor.elements *= size;
      tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(size));
    }
    tensor.type = reader.scalar<uint32_t>(what);
    offsets.push_back(reader.scalar<uint64_t>(what));
    if (!tensor_index_.emplace(tensor.name, tensors_.size()).second) {
      fail("has " + what + " twice; convert the model again");
    }
    tensors_.push_back(std::move(tensor));
  }
  place_tensors(reader, offsets);
}

void GgufFile::place_tensors(Reader& reader, const std::vector<uint64_t>& offsets) {
  if (tensors_.empty()) return;
  uint64_t alignment = kDefaultAlignment;
  if (const auto value = get_int("general.alignment")) {
    if (*value < 1 || *value > static_cast<int64_t>(kAlignmentMax) ||
        !std::has_single_bit(static_cast<uint64_t>(*value))) {
      fail("key 'general.alignment' must be a power of two of at most " + std::to_string(kAlignmentMax) + ", got " +
           std::to_string(*value) + kDamaged);
    }
    alignment = static_cast<uint64_t>(*value);
  }
  const uint64_t begin = (reader.at + alignment - 1) / alignment * alignment;
  const uint64_t data_size = begin <= file_.size() ? file_.size() - begin : 0;
  std::vector<uint64_t> ends(offsets);
  ends.push_back(data_size);
  std::sort(ends.begin(), ends.end());
  for (size_t i = 0; i < tensors_.size(); ++i) {
    GgufTensor& tensor = tensors_[i];
    const std::string what = "tensor '" + tensor.name + "'";
    if (offsets[i] % alignment != 0) {
      fail(what + " begins at " + std::to_string(offsets[i]) + ", which is no multiple of the alignment " +
           std::to_string(alignment) + kDamaged);
    }
    if (offsets[i] >= data_size) fail(what + " begins behind the end of the file" + kDamaged);
    const BlockSize block = block_size(tensor.type);
    uint64_t size = *std::upper_bound(ends.begin(), ends.end(), offsets[i]) - offsets[i];
    if (block.values != 0) {
      if (static_cast<uint64_t>(tensor.shape.back()) % block.values != 0) {
        fail(what + " has rows of " + std::to_string(tensor.shape.back()) + " values, no multiple of its block of " +
             std::to_string(block.values) + kDamaged);
      }
      const uint64_t blocks = tensor.elements / block.values;
      if (blocks > (data_size - offsets[i]) / block.bytes) {
        fail(what + " reaches behind the end of the file (" + std::to_string(tensor.elements) + " values at byte " +
             std::to_string(begin + offsets[i]) + " of " + std::to_string(file_.size()) + ")" + kDamaged);
      }
      size = blocks * block.bytes;
    }
    tensor.data = file_.bytes().subspan(static_cast<size_t>(begin + offsets[i]), static_cast<size_t>(size));
  }
}

const GgufTensor* GgufFile::find_tensor(std::string_view name) const {
  const auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

const GgufValue* GgufFile::find(std::string_view key) const {
  const auto found = values_.find(key);
  return found == values_.end() ? nullptr : &found->second;
}

int64_t GgufFile::int_at(std::string_view key, const GgufValue& value, uint64_t index) const {
  const std::byte* at = value.data.data() + index * scalar_bytes(value.type);
  switch (value.type) {
    case GgufType::kUint8:
      return load<uint8_t>(at);
    case GgufType::kInt8:
      return load<int8_t>(at);
    case GgufType::kUint16:
      return load<uint16_t>(at);
    case GgufType::kInt16:
      return load<int16_t>(at);
    case GgufType::kUint32:
      return load<uint32_t>(at);
    case GgufType::kInt32:
      return load<int32_t>(at);
    case GgufType::kInt64:
      return load<int64_t>(at);
    case GgufType::kUint64: {
      const auto number = load<uint64_t>(at);
      if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        fail("key '" + std::string(key) + "' has the value " + std::to_string(number) + ", which is too large" +
             kDamaged);
      }
      return static_cast<int64_t>(number);
    }
    default:
      fail_type(key, value, "integer");
  }
}

std::optional<int64_t> GgufFile::get_int(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_array) fail_type(key, *value, "integer");
  return int_at(key, *value, 0);
}

std::optional<double> GgufFile::get_float(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_array || value->type == GgufType::kBool || value->type == GgufType::kString) {
    fail_type(key, *value, "float");
  }
  if (value->type == GgufType::kFloat32) return load<float>(value->data.data());
  if (value->type == GgufType::kFloat64) return load<double>(value->data.data());
  return static_cast<double>(int_at(key, *value, 0));
}

std::optional<bool> GgufFile::get_bool(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_array || value->type != GgufType::kBool) fail_type(key, *value, "bool");
  return value->data[0] != std::byte{0};
}

std::optional<std::string_view> GgufFile::get_string(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_array || value->type != GgufType::kString) fail_type(key, *value, "string");
  return std::string_view(reinterpret_cast<const char*>(value->data.data()) + 8, value->data.size() - 8);
}

std::optional<PageVector<int64_t>> GgufFile::get_ints(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array) fail_type(key, *value, "array of integers");
  PageVector<int64_t> result(static_cast<size_t>(value->count));
  for (size_t i = 0; i < result.size(); ++i) result[i] = int_at(key, *value, i);
  return result;
}

std::optional<PageVector<float>> GgufFile::get_floats(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  const bool is_double = value->type == GgufType::kFloat64;
  if (!value->is_array || (value->type != GgufType::kFloat32 && !is_double)) {
    fail_type(key, *value, "array of floats");
  }
  PageVector<float> result(static_cast<size_t>(value->count));
  for (size_t i = 0; i < result.size(); ++i) {
    result[i] = is_double ? static_cast<float>(load<double>(value->data.data() + 8 * i))
                          : load<float>(value->data.data() + 4 * i);
  }
  return result;
}

std::optional<std::vector<bool>> GgufFile::get_bools(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array || value->type != GgufType::kBool) fail_type(key, *value, "array of bools");
  std::vector<bool> result(static_cast<size_t>(value->count));
  for (size_t i = 0; i < result.size(); ++i) result[i] = value->data[i] != std::byte{0};
  return result;
}

std::optional<PageVector<std::string_view>> GgufFile::get_strings(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array || value->type != GgufType::kString) fail_type(key, *value, "array of strings");
  PageVector<std::string_view> result;
  result.reserve(static_cast<size_t>(value->count));
  const std::byte* at = value->data.data();
  for (uint64_t i = 0; i < value->count; ++i) {  // lengths were checked when the header was read
    const auto size = load<uint64_t>(at);
    result.emplace_back(reinterpret_cast<const char*>(at) + 8, static_cast<size_t>(size));
    at += 8 + size;
  }
  return result;
}

int64_t GgufFile::require_int(std::string_view key) const {
  if (const auto value = get_int(key)) return *value;
  fail("lacks the key '" + std::string(key) + "'; convert the model again");
}

double GgufFile::require_float(std::string_view key) const {
  if (const auto value = get_float(key)) return *value;
  fail("lacks the key '" + std::string(key) + "'; convert the model again");
}

std::string_view GgufFile::require_string(std::string_view key) const {
  if (const auto value = get_string(key)) return *value;
  fail("lacks the key '" + std::string(key) + "'; convert the model again");
}

// `what` holds names out of the file, of any length.
void GgufFile::fail(const std::string& what) const {
  throw Error(ErrorKind::kValue, file_.path() + ": " + printable(what, kMessageBytesMax));
}

void GgufFile::fail_type(std::string_view key, const GgufValue& value, const char* wanted) const {
  fail("key '" + std::string(key) + "' must be of type " + wanted + ", got " +
       (value.is_array ? std::string("array of ") : std::string()) + type_name(value.type) +
       "; convert the model again");
}

}  // namespace tokenmill
