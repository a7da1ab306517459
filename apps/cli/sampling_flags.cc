#include "cli/sampling_flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "cli/jsonl.h"
#include "tokenmill/error.h"

namespace tokenmill::cli {
namespace {

using nlohmann::json;
using Field = SamplingParamsField;

[[noreturn]] void wrong_type(const Field& field, const json& value) {
  throw Error(ErrorKind::kType,
              std::string(field.name) + " must be " + std::string(field.type) + ", got " + value.dump() + ".");
}

OptionValue list_from_json(const Field& field, const json& list) {
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
OptionValue map_from_json(const Field& field, const json& object) {
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

OptionValue value_from_json(const Field& field, const json& value) {
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

// How a flag's text becomes JSON: as it stands, as a list of texts, "1,2,3", or as JSON.
bool is_flag(const Field& field) { return field.type == "bool"; }
bool is_text(const Field& field) { return field.type.starts_with("str"); }
bool is_texts(const Field& field) { return field.type.starts_with("list[str]"); }
bool is_ids(const Field& field) { return field.type.starts_with("list[int]"); }

std::string shown_type(const Field& field) {
  if (is_text(field) || is_texts(field)) return "text";
  if (is_ids(field)) return "int,int,...";
  if (field.type.starts_with("dict")) return "json";
  return std::string(field.type.substr(0, field.type.find(' ')));
}

std::string help_of(const Field& field) {
  std::string help(field.help);
  if (is_texts(field)) help += "; may be repeated";
  if (field.default_text != "None" && field.default_text != "False") {
    help += " [" + std::string(field.default_text == "True" ? "true" : field.default_text) + "]";
  }
  return help;
}

json json_from_flag(const Field& field, const std::vector<std::string>& texts) {
  const std::string& text = texts.back();
  if (is_text(field)) return text;
  if (is_texts(field)) return texts;
  if (is_ids(field)) return parse_json("[" + text + "]");
  return parse_json(text == "None" ? "null" : text);
}

void set_from_flag(const Field& field, SamplingParams& params, const std::vector<std::string>& texts) {
  try {
    field.set(params, value_from_json(field, json_from_flag(field, texts)));
  } catch (const json::exception&) {
    throw CLI::ValidationError(std::string(field.name), "must be " + shown_type(field) + ", got " + texts.back() + ".");
  } catch (const Error& error) {
    throw CLI::ValidationError(error.what());
  }
}

}  // namespace

void add_sampling_flags(CLI::App& app, SamplingParams& params) {
  for (const Field& field : sampling_params_fields()) {
    if (field.name == "stream_interval") continue;  // that flag is the engine's
    std::string flag(field.name);
    std::replace(flag.begin(), flag.end(), '_', '-');
    CLI::Option* option = nullptr;
    if (is_flag(field)) {
      option = app.add_flag_function(
          "--" + flag + ",!--no-" + flag, [&field, &params](int64_t count) { field.set(params, count > 0); },
          help_of(field));
    } else {
      const std::string names = field.name == "sampling_seed" ? "--" + flag + ",--seed" : "--" + flag;
      option = app.add_option_function<std::vector<std::string>>(
          names, [&field, &params](const std::vector<std::string>& texts) { set_from_flag(field, params, texts); },
          help_of(field));
      option->type_name(shown_type(field))->expected(1)->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
    }
    option->group("Sampling");
  }
}

void apply_sampling_json(const json& object, SamplingParams& params) {
  if (!object.is_object())
    throw Error(ErrorKind::kType, "sampling_params must be an object, got " + object.dump() + ".");
  for (const auto& [name, value] : object.items()) {
    const Field& field = find_sampling_params_field(name);
    field.set(params, value_from_json(field, value));
  }
}

}  // namespace tokenmill::cli
