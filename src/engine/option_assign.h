// OptionValue -> a member of SamplingParams or ServerArgs, and back. A whole number serves as a float and one item as a
// list of one; nothing else is converted.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/text_repr.h"
#include "tokenmill/error.h"
#include "tokenmill/option_value.h"

namespace tokenmill {

template <class T>
constexpr std::string_view kOptionTypeName = "";
template <>
inline constexpr std::string_view kOptionTypeName<std::string> = "str";
template <>
inline constexpr std::string_view kOptionTypeName<bool> = "bool";
template <>
inline constexpr std::string_view kOptionTypeName<int64_t> = "int";
template <>
inline constexpr std::string_view kOptionTypeName<uint64_t> = "int";
template <>
inline constexpr std::string_view kOptionTypeName<double> = "float";
template <>
inline constexpr std::string_view kOptionTypeName<std::vector<std::string>> = "list[str] | None";
template <>
inline constexpr std::string_view kOptionTypeName<std::vector<int64_t>> = "list[int] | None";
template <>
inline constexpr std::string_view kOptionTypeName<std::map<int64_t, double>> = "dict[int, float] | None";
template <>
inline constexpr std::string_view kOptionTypeName<std::optional<std::string>> = "str | None";
template <>
inline constexpr std::string_view kOptionTypeName<std::optional<bool>> = "bool | None";
template <>
inline constexpr std::string_view kOptionTypeName<std::optional<int64_t>> = "int | None";
template <>
inline constexpr std::string_view kOptionTypeName<std::optional<uint64_t>> = "int | None";
template <>
inline constexpr std::string_view kOptionTypeName<std::optional<double>> = "float | None";
template <>
inline constexpr std::string_view kOptionTypeName<std::optional<std::vector<int64_t>>> = "list[int] | None";

// As Python writes it.
std::string python_repr(const OptionValue& value);

// Throws Error(kType) "NAME must be TYPE, got VALUE.", or Error(kValue) for a whole number out of TYPE's range.
[[noreturn]] void throw_option_type(std::string_view name, std::string_view type, const OptionValue& value);

namespace option_internal {

// False where the value is of another type.
bool convert(const OptionValue& value, std::string& out);
bool convert(const OptionValue& value, bool& out);
bool convert(const OptionValue& value, int64_t& out);
bool convert(const OptionValue& value, uint64_t& out);
bool convert(const OptionValue& value, double& out);
bool convert(const OptionValue& value, std::vector<std::string>& out);
bool convert(const OptionValue& value, std::vector<int64_t>& out);
bool convert(const OptionValue& value, std::map<int64_t, double>& out);
template <class T>
bool convert(const OptionValue& value, std::optional<T>& out) {
  if (std::holds_alternative<std::monostate>(value)) {
    out.reset();
    return true;
  }
  T inner{};
  if (!convert(value, inner)) return false;
  out = std::move(inner);
  return true;
}

}  // namespace option_internal

template <class T>
void assign_option(std::string_view name, const OptionValue& value, T& out) {
  if (!option_internal::convert(value, out)) throw_option_type(name, kOptionTypeName<T>, value);
}

template <class T>
OptionValue option_of(const T& value) {
  return OptionValue(value);
}
template <class T>
OptionValue option_of(const std::optional<T>& value) {
  return value ? OptionValue(*value) : OptionValue();
}
// An empty list or map is what Python calls None.
template <class T>
OptionValue option_of(const std::vector<T>& value) {
  return value.empty() ? OptionValue() : OptionValue(value);
}
inline OptionValue option_of(const std::map<int64_t, double>& value) {
  return value.empty() ? OptionValue() : OptionValue(value);
}

}  // namespace tokenmill
