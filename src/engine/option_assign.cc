#include "engine/option_assign.h"

#include <limits>

namespace tokenmill {
namespace {

template <class Items, class Write>
std::string join(const Items& items, const char* open, const char* close, Write write) {
  std::string text = open;
  for (const auto& item : items) {
    if (text.size() > 1) text += ", ";
    text += write(item);
  }
  return text + close;
}

struct Repr {
  std::string operator()(std::monostate) const { return "None"; }
  std::string operator()(uint64_t value) const { return std::to_string(value); }
  std::string operator()(const std::vector<int64_t>& ids) const {
    return join(ids, "[", "]", [](int64_t id) { return std::to_string(id); });
  }
  std::string operator()(const std::map<int64_t, double>& map) const {
    return join(map, "{", "}",
                [](const auto& item) { return std::to_string(item.first) + ": " + python_repr(item.second); });
  }
  template <class T>
  std::string operator()(const T& value) const {
    return python_repr(value);
  }
};

template <class T>
bool take(const OptionValue& value, T& out) {
  const T* held = std::get_if<T>(&value);
  if (held) out = *held;
  return held != nullptr;
}

}  // namespace

std::string python_repr(const OptionValue& value) { return std::visit(Repr(), value); }

void throw_option_type(std::string_view name, std::string_view type, const OptionValue& value) {
  // The one int64_t that is no "int" is a negative one where no sign is.
  if (type.starts_with("int") && std::holds_alternative<int64_t>(value)) {
    throw_rule(name, "at least 0", python_repr(value));
  }
  const bool too_large = type.starts_with("int") && std::holds_alternative<uint64_t>(value);
  throw Error(too_large ? ErrorKind::kValue : ErrorKind::kType, std::string(name) + " must be " +
                                                                    (too_large ? "a 64-bit int" : std::string(type)) +
                                                                    ", got " + python_repr(value) + ".");
}

namespace option_internal {

bool convert(const OptionValue& value, std::string& out) { return take(value, out); }
bool convert(const OptionValue& value, bool& out) { return take(value, out); }
bool convert(const OptionValue& value, int64_t& out) { return take(value, out); }

bool convert(const OptionValue& value, uint64_t& out) {
  if (take(value, out)) return true;
  int64_t number = -1;
  if (!take(value, number) || number < 0) return false;
  out = static_cast<uint64_t>(number);
  return true;
}

bool convert(const OptionValue& value, double& out) {
  if (take(value, out)) return true;
  if (const auto* number = std::get_if<int64_t>(&value)) {
    out = static_cast<double>(*number);
    return true;
  }
  if (const auto* number = std::get_if<uint64_t>(&value)) {
    out = static_cast<double>(*number);
    return true;
  }
  return false;
}

bool convert(const OptionValue& value, std::vector<std::string>& out) {
  out.clear();
  if (std::holds_alternative<std::monostate>(value)) return true;
  if (const auto* ids = std::get_if<std::vector<int64_t>>(&value)) return ids->empty();
  if (take(value, out)) return true;
  return take(value, out.emplace_back());
}

bool convert(const OptionValue& value, std::vector<int64_t>& out) {
  out.clear();
  if (std::holds_alternative<std::monostate>(value)) return true;
  if (const auto* texts = std::get_if<std::vector<std::string>>(&value)) return texts->empty();
  if (take(value, out)) return true;
  return take(value, out.emplace_back());
}

bool convert(const OptionValue& value, std::map<int64_t, double>& out) {
  out.clear();
  return std::holds_alternative<std::monostate>(value) || take(value, out);
}

}  // namespace option_internal
}  // namespace tokenmill
