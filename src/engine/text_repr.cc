#include "engine/text_repr.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>

#include "tokenmill/error.h"

namespace tokenmill {

std::string python_repr(bool value) { return value ? "True" : "False"; }

std::string python_repr(int64_t value) { return std::to_string(value); }

std::string python_repr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  // Python writes an exponent below 1e-4 and from 1e16 on.
  const double magnitude = std::fabs(value);
  const bool fixed = value == 0 || (magnitude >= 1e-4 && magnitude < 1e16);
  char buffer[64];
  const auto format = fixed ? std::chars_format::fixed : std::chars_format::scientific;
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value, format).ptr;
  std::string text(buffer, end);
  if (fixed && text.find('.') == std::string::npos) text += ".0";
  return text;
}

std::string python_repr(std::string_view value) {
  const bool double_quotes = value.find('\'') != value.npos && value.find('"') == value.npos;
  const char quote = double_quotes ? '"' : '\'';
  static constexpr char kHex[] = "0123456789abcdef";
  std::string text(1, quote);
  for (const char c : value) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == quote || c == '\\') {
      text += '\\';
      text += c;
    } else if (c == '\n') {
      text += "\\n";
    } else if (c == '\t') {
      text += "\\t";
    } else if (c == '\r') {
      text += "\\r";
    } else if (byte < 0x20 || byte == 0x7f) {
      text += "\\x";
      text += kHex[byte >> 4];
      text += kHex[byte & 15];
    } else {
      text += c;
    }
  }
  return text + quote;
}

std::string python_repr(const std::vector<std::string>& values) {
  if (values.empty()) return "None";
  std::string text = "[";
  for (size_t i = 0; i < values.size(); ++i) text += (i ? ", " : "") + python_repr(values[i]);
  return text + "]";
}

namespace {

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t substituted = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({substituted, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

}  // namespace

std::string_view nearest_name(std::string_view name, std::span<const std::string_view> names) {
  return *std::min_element(names.begin(), names.end(), [&](std::string_view a, std::string_view b) {
    return edit_distance(name, a) < edit_distance(name, b);
  });
}

void throw_rule(std::string_view name, std::string_view rule, const std::string& got) {
  throw Error(ErrorKind::kValue, std::string(name) + " must be " + std::string(rule) + ", got " + got + ".");
}

}  // namespace tokenmill
