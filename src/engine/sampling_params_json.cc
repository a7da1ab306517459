#include "engine/sampling_params_json.h"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "engine/json_text.h"
#include "tokenmill/error.h"

namespace tokenmill {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

[[noreturn]] void wrong_type(const SamplingParamsField& field, const json& value) {
  throw Error(ErrorKind::kType,
              std::string(field.name) + " must be " + std::string(field.type) + ", got " + dump_json(value) + ".");
}

OptionValue list_from_json(const SamplingParamsField& field, const json& list) {
  if (std::all_of(list.begin(), list.end(), [](const json& item) { return item.is_string(); })) {
    return list.get<std::vector<std::string>>();
  }
  const auto is_id = [](const json& item) {
    if (item.is_number_unsigned()) return item.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX);
    return item.is_number_integer();
  };
  if (!std::all_of(list.begin(), list.end(), is_id)) wrong_type(field, list);
  return list.get<std::vector<int64_t>>();
}

// {"42": -100}: JSON's keys are strings.
OptionValue map_from_json(const SamplingParamsField& field, const json& object) {
  std::map<int64_t, double> map;
  for (const auto& [key, bias] : object.items()) {
    size_t end = 0;
    int64_t id = 0;
    try {
      id = std::stoll(key, &end);
    } catch (const std::exception&) {
      end = 0;
    }
    if (end == 0 || end != key.size() || !bias.is_number()) wrong_type(field, object);
    map[id] = bias.get<double>();
  }
  return map;
}

OptionValue value_from_json(const SamplingParamsField& field, const json& value) {
  switch (value.type()) {
    case json::value_t::null:
      return std::monostate();
    case json::value_t::boolean:
      return value.get<bool>();
    case json::value_t::number_integer:
      return value.get<int64_t>();
    case json::value_t::number_unsigned:
      if (value.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX)) return value.get<int64_t>();
      return value.get<uint64_t>();
    case json::value_t::number_float:
      return value.get<double>();
    case json::value_t::string:
      return value.get<std::string>();
    case json::value_t::array:
      return list_from_json(field, value);
    case json::value_t::object:
      return map_from_json(field, value);
    default:
      wrong_type(field, value);
  }
}

ordered_json value_to_json(const OptionValue& value) {
  return std::visit(
      [](const auto& held) -> ordered_json {
        if constexpr (std::is_same_v<std::decay_t<decltype(held)>, std::monostate>) {
          return nullptr;
        } else {
          return held;
        }
      },
      value);
}

}  // namespace

bool is_sampling_param(std::string_view name) {
  const auto fields = sampling_params_fields();
  return name == "seed" || std::any_of(fields.begin(), fields.end(),
                                       [&](const SamplingParamsField& field) { return field.name == name; });
}

void set_sampling_json(SamplingParams& params, std::string_view name, const json& value) {
  const SamplingParamsField& field = find_sampling_params_field(name);
  field.set(params, value_from_json(field, value));
}

void set_sampling_param(SamplingParams& params, std::string_view name, std::string_view text) {
  set_sampling_json(params, name, parse_json(text));
}

void apply_sampling_json(const json& object, SamplingParams& params) {
  if (!object.is_object()) {
    throw Error(ErrorKind::kType, "sampling_params must be an object, got " + dump_json(object) + ".");
  }
  for (const auto& [name, value] : object.items()) set_sampling_json(params, name, value);
}

ordered_json sampling_to_json(const SamplingParams& params) {
  ordered_json out;
  for (const SamplingParamsField& field : sampling_params_fields()) {
    out[std::string(field.name)] = value_to_json(field.get(params));
  }
  return out;
}

}  // namespace tokenmill
