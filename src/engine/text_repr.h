// Values as Python writes them (1.0, 'lpm', None, True) and the nearest of several names: for messages and help.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tokenmill {

std::string python_repr(bool value);
std::string python_repr(int64_t value);
std::string python_repr(double value);  // the shortest text that reads back equal: 0.88, 1.0, 1e-07
std::string python_repr(std::string_view value);
inline std::string python_repr(const std::string& value) { return python_repr(std::string_view(value)); }
inline std::string python_repr(const char* value) { return python_repr(std::string_view(value)); }
std::string python_repr(const std::vector<std::string>& values);
template <class T>
std::string python_repr(const std::optional<T>& value) {
  return value ? python_repr(*value) : std::string("None");
}

// The name with the smallest edit distance, the first of equals; names must not be empty.
std::string_view nearest_name(std::string_view name, std::span<const std::string_view> names);

// Throws Error(kValue) "NAME must be RULE, got VALUE." unless ok.
template <class T>
void require_rule(bool ok, std::string_view name, std::string_view rule, const T& got);
[[noreturn]] void throw_rule(std::string_view name, std::string_view rule, const std::string& got);

template <class T>
void require_rule(bool ok, std::string_view name, std::string_view rule, const T& got) {
  if (!ok) throw_rule(name, rule, python_repr(got));
}

}  // namespace tokenmill
