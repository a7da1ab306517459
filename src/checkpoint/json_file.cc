#include "checkpoint/json_file.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>

#include "checkpoint/load_error.h"

namespace tokenmill {

using nlohmann::json;

namespace {

// Copies and prints of a value recurse; no configuration comes near this depth.
constexpr int kDepthMax = 128;

std::string shown_value(const json& value) { return quote(value.dump(-1, ' ', false, json::error_handler_t::replace)); }

std::string plain(double value) {
  std::ostringstream out;
  out << value;
  return out.str();
}

}  // namespace

json parse_json_object(std::string_view text, const std::string& source) {
  json parsed;
  try {
    parsed = json::parse(text, [&](int depth, json::parse_event_t, const json&) {
      if (depth > kDepthMax) {
        fail_load(source,
                  "nests deeper than " + std::to_string(kDepthMax) + " levels; write or download the file again");
      }
      return true;
    });
  } catch (const json::exception& e) {
    fail_load(source, "not valid JSON (" + quote(e.what()) + "); write or download the file again");
  }
  if (!parsed.is_object()) fail_load(source, "must hold a JSON object, not " + std::string(parsed.type_name()));
  return parsed;
}

json read_json_object(const std::string& path, size_t max_bytes) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    fail_load(path, "not a readable file" + (error ? " (" + error.message() + ")" : std::string()));
  }
  const uintmax_t size = std::filesystem::file_size(path, error);
  if (error) fail_load(path, "cannot read its size (" + error.message() + ")");
  if (size > max_bytes) {
    fail_load(path, "is " + std::to_string(size) + " bytes; at most " + std::to_string(max_bytes) + " are read");
  }
  std::ifstream in(path, std::ios::binary);
  std::string text(size, '\0');
  if (!in.read(text.data(), static_cast<std::streamsize>(size))) fail_load(path, "cannot be read");
  return parse_json_object(text, path);
}

std::string JsonObject::shown(std::string_view key) const { return quote(prefix_ + std::string(key)); }

void JsonObject::fail(std::string_view key, const std::string& rule) const {
  auto it = object_->find(key);
  const std::string state = it == object_->end() ? "is missing" : "is " + shown_value(*it);
  fail_load(file_, "key " + shown(key) + " " + rule + ", but " + state);
}

void JsonObject::unsupported(std::string_view key, const std::string& why) const {
  auto it = object_->find(key);
  const std::string value = it == object_->end() ? "" : " = " + shown_value(*it);
  fail_load(file_, "key " + shown(key) + value + ": " + why, ErrorKind::kUnsupported);
}

const json* JsonObject::find(std::string_view key) const {
  auto it = object_->find(key);
  return it == object_->end() || it->is_null() ? nullptr : &*it;
}

bool JsonObject::contains(std::string_view key) const { return object_->contains(key); }

JsonObject JsonObject::child(std::string_view key) const {
  const json* value = find(key);
  if (value == nullptr || !value->is_object()) fail(key, "must be a JSON object");
  return JsonObject(*value, file_, prefix_ + std::string(key) + ".");
}

int64_t JsonObject::check_integer(std::string_view key, const json& value, int64_t min, int64_t max) const {
  const std::string rule = "must be an integer from " + std::to_string(min) + " to " + std::to_string(max);
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    if (max < 0 || number > static_cast<uint64_t>(max) || (min > 0 && number < static_cast<uint64_t>(min))) {
      fail(key, rule);
    }
    return static_cast<int64_t>(number);
  }
  if (value.is_number_integer()) {
    const auto number = value.get<int64_t>();
    if (number < min || number > max) fail(key, rule);
    return number;
  }
  if (value.is_number_float()) {  // some converters write 8192.0
    const auto number = value.get<double>();
    if (number == std::floor(number) && number >= static_cast<double>(min) && number <= static_cast<double>(max) &&
        std::abs(number) <= 0x1p53) {
      return static_cast<int64_t>(number);
    }
  }
  fail(key, rule);
}

std::optional<int64_t> JsonObject::integer(std::string_view key, int64_t min, int64_t max) const {
  const json* value = find(key);
  if (value == nullptr) return std::nullopt;
  return check_integer(key, *value, min, max);
}

int64_t JsonObject::integer_or(std::string_view key, int64_t min, int64_t max, int64_t fallback) const {
  return integer(key, min, max).value_or(fallback);
}

int64_t JsonObject::required_integer(std::string_view key, int64_t min, int64_t max) const {
  const std::optional<int64_t> value = integer(key, min, max);
  if (!value) fail(key, "must be an integer from " + std::to_string(min) + " to " + std::to_string(max));
  return *value;
}

std::optional<double> JsonObject::number(std::string_view key, double min, double max) const {
  const json* value = find(key);
  if (value == nullptr) return std::nullopt;
  const double number = value->is_number() ? value->get<double>() : NAN;
  if (!(number >= min && number <= max)) fail(key, "must be a number from " + plain(min) + " to " + plain(max));
  return number;
}

double JsonObject::number_or(std::string_view key, double min, double max, double fallback) const {
  return number(key, min, max).value_or(fallback);
}

bool JsonObject::boolean_or(std::string_view key, bool fallback) const {
  const json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) fail(key, "must be true or false");
  return value->get<bool>();
}

std::optional<std::string> JsonObject::text(std::string_view key) const {
  const json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) fail(key, "must be a string");
  return value->get<std::string>();
}

std::vector<int64_t> JsonObject::integers(std::string_view key, int64_t min, int64_t max, size_t count_max) const {
  const json* value = find(key);
  if (value == nullptr) return {};
  if (!value->is_array()) return {check_integer(key, *value, min, max)};
  if (value->size() > count_max) fail(key, "must have at most " + std::to_string(count_max) + " entries");
  std::vector<int64_t> out;
  for (const json& entry : *value) out.push_back(check_integer(key, entry, min, max));
  return out;
}

}  // namespace tokenmill
