// Typed reads from a JSON file; every failure names the file, the key, the rule and the value.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tokenmill {

// Parses a regular file of at most max_bytes as a JSON object. Throws Error(kValue).
nlohmann::json read_json_object(const std::string& path, size_t max_bytes);
// Parses text as a JSON object; `source` names it in messages.
nlohmann::json parse_json_object(std::string_view text, const std::string& source);

// A JSON object and where it came from. Does not own either. A key that is absent or null counts as not given.
class JsonObject {
 public:
  // prefix: the path of this object inside the file, "" or "text_config.".
  JsonObject(const nlohmann::json& object, std::string file, std::string prefix = "")
      : object_(&object), file_(std::move(file)), prefix_(std::move(prefix)) {}

  const std::string& file() const { return file_; }
  const nlohmann::json* find(std::string_view key) const;  // null counts as absent
  bool contains(std::string_view key) const;               // null counts as present
  JsonObject child(std::string_view key) const;            // throws where it is not an object

  std::optional<int64_t> integer(std::string_view key, int64_t min, int64_t max) const;
  int64_t integer_or(std::string_view key, int64_t min, int64_t max, int64_t fallback) const;
  int64_t required_integer(std::string_view key, int64_t min, int64_t max) const;
  // min and max are allowed values.
  std::optional<double> number(std::string_view key, double min, double max) const;
  double number_or(std::string_view key, double min, double max, double fallback) const;
  bool boolean_or(std::string_view key, bool fallback) const;
  std::optional<std::string> text(std::string_view key) const;
  // One integer or a list of them; empty where not given.
  std::vector<int64_t> integers(std::string_view key, int64_t min, int64_t max, size_t count_max) const;

  // "file: key 'prefix.key' <rule>, but is <value>"
  [[noreturn]] void fail(std::string_view key, const std::string& rule) const;
  [[noreturn]] void unsupported(std::string_view key, const std::string& why) const;

 private:
  int64_t check_integer(std::string_view key, const nlohmann::json& value, int64_t min, int64_t max) const;
  std::string shown(std::string_view key) const;

  const nlohmann::json* object_;
  std::string file_, prefix_;
};

}  // namespace tokenmill
