#include "cli/sampling_flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "cli/jsonl.h"
#include "cli/nearest.h"
#include "tokenmill/error.h"

namespace tokenmill::cli {
namespace {

using nlohmann::json;

// Conversions from JSON; each throws json::exception or Error(kType) on a value of the wrong type.
[[noreturn]] void wrong_type(const char* type, const json& value) {
  throw Error(ErrorKind::kType, std::string("must be ") + type + ", got " + value.dump() + ".");
}

void read(const json& value, bool& out) {
  if (!value.is_boolean()) wrong_type("bool", value);
  out = value.get<bool>();
}
void read(const json& value, int64_t& out) {
  if (!value.is_number_integer()) wrong_type("int", value);
  if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
    wrong_type("a 64-bit int", value);
  }
  out = value.get<int64_t>();
}
void read(const json& value, uint64_t& out) {
  if (!value.is_number_unsigned()) wrong_type("an int of at least 0", value);
  out = value.get<uint64_t>();
}
void read(const json& value, double& out) {
  if (!value.is_number()) wrong_type("float", value);
  out = value.get<double>();
}
void read(const json& value, std::string& out) {
  if (!value.is_string()) wrong_type("str", value);
  out = value.get<std::string>();
}
void read(const json& value, std::map<int64_t, double>& out) {
  if (!value.is_object()) wrong_type("an object of token id to float", value);
  out.clear();
  for (const auto& [key, bias] : value.items()) {
    size_t end = 0;
    int64_t id = 0;
    try {
      id = std::stoll(key, &end);
    } catch (const std::exception&) {
      end = 0;
    }
    if (end == 0 || end != key.size()) wrong_type("an object of token id to float", value);
    read(bias, out[id]);
  }
}
template <class T>
void read(const json& value, std::vector<T>& out) {
  out.clear();
  if (value.is_null()) return;
  if (!value.is_array()) {  // one is as good as a list of one
    read(value, out.emplace_back());
    return;
  }
  for (const json& item : value) read(item, out.emplace_back());
}
template <class T>
void read(const json& value, std::optional<T>& out) {
  if (value.is_null()) {
    out.reset();
  } else {
    T inner{};
    read(value, inner);
    out = std::move(inner);
  }
}

// How a flag's text becomes JSON.
enum class Text { kJson, kString, kStrings, kInts };

struct Field {
  const char* name;
  const char* type;
  Text text;
  const char* help;
  void (*set)(SamplingParams&, const json&);
};

#define TM_FIELD(member) [](SamplingParams& params, const json& value) { read(value, params.member); }
const Field kFields[] = {
    {"max_new_tokens", "int", Text::kJson, "tokens to generate; null: to the context's end [128]",
     TM_FIELD(max_new_tokens)},
    {"min_new_tokens", "int", Text::kJson, "no end of text before that many [0]", TM_FIELD(min_new_tokens)},
    {"temperature", "float", Text::kJson, "0: greedy [1.0]", TM_FIELD(temperature)},
    {"top_p", "float", Text::kJson, "keep the likeliest tokens up to this probability [1.0]", TM_FIELD(top_p)},
    {"top_k", "int", Text::kJson, "keep the k likeliest tokens; -1: all [-1]", TM_FIELD(top_k)},
    {"min_p", "float", Text::kJson, "drop tokens below this share of the likeliest [0]", TM_FIELD(min_p)},
    {"frequency_penalty", "float", Text::kJson, "[-2, 2], for each time in the output [0]",
     TM_FIELD(frequency_penalty)},
    {"presence_penalty", "float", Text::kJson, "[-2, 2], once for a token of the output [0]",
     TM_FIELD(presence_penalty)},
    {"repetition_penalty", "float", Text::kJson, "(0, 2], for tokens of prompt and output [1.0]",
     TM_FIELD(repetition_penalty)},
    {"stop", "text", Text::kStrings, "end before this text; may be repeated", TM_FIELD(stop)},
    {"stop_token_ids", "int,int,...", Text::kInts, "end at these tokens", TM_FIELD(stop_token_ids)},
    {"stop_regex", "text", Text::kStrings, "end before a match; may be repeated", TM_FIELD(stop_regex)},
    {"ignore_eos", "", Text::kJson, "go on after end-of-text tokens", TM_FIELD(ignore_eos)},
    {"no_stop_trim", "", Text::kJson, "keep the stop string in the text", TM_FIELD(no_stop_trim)},
    {"skip_special_tokens", "", Text::kJson, "leave special tokens out of the text [true]",
     TM_FIELD(skip_special_tokens)},
    {"spaces_between_special_tokens", "", Text::kJson, "[true]", TM_FIELD(spaces_between_special_tokens)},
    {"n", "int", Text::kJson, "samples a prompt [1]", TM_FIELD(n)},
    {"json_schema", "text", Text::kString, "constrain the output to a JSON schema", TM_FIELD(json_schema)},
    {"regex", "text", Text::kString, "constrain the output to a regular expression", TM_FIELD(regex)},
    {"ebnf", "text", Text::kString, "constrain the output to a grammar", TM_FIELD(ebnf)},
    {"structural_tag", "text", Text::kString, "constrain parts of the output", TM_FIELD(structural_tag)},
    {"logit_bias", "json", Text::kJson, "such as '{\"42\": -100}'", TM_FIELD(logit_bias)},
    {"bad_words", "text", Text::kStrings, "never generate this; may be repeated", TM_FIELD(bad_words)},
    {"allowed_token_ids", "int,int,...", Text::kInts, "generate these tokens only", TM_FIELD(allowed_token_ids)},
    {"sampling_seed", "int", Text::kJson, "the same seed gives the same tokens (also: seed)", TM_FIELD(sampling_seed)},
    {"stream_interval", "int", Text::kJson, "tokens a streamed chunk", TM_FIELD(stream_interval)},
};
#undef TM_FIELD

const Field& find_field(std::string_view name) {
  if (name == "seed") name = "sampling_seed";
  std::vector<std::string> names;
  for (const Field& field : kFields) {
    if (name == field.name) return field;
    names.emplace_back(field.name);
  }
  throw Error(ErrorKind::kType, "Unknown sampling parameter '" + std::string(name) + "'; did you mean '" +
                                    nearest_of(name, names) + "'?");
}

void set_field(const Field& field, SamplingParams& params, const json& value) {
  try {
    field.set(params, value);
  } catch (const Error& error) {
    throw Error(error.kind(), std::string(field.name) + " " + error.what());
  }
}

json json_from_flag(const Field& field, const std::vector<std::string>& texts) {
  const std::string& text = texts.back();
  switch (field.text) {
    case Text::kString:
      return text;
    case Text::kStrings:
      return texts;
    case Text::kInts:
      return parse_json("[" + text + "]");
    case Text::kJson:
      return parse_json(text == "None" ? "null" : text);
  }
  return nullptr;
}

void set_from_flag(const Field& field, SamplingParams& params, const std::vector<std::string>& texts) {
  try {
    set_field(field, params, json_from_flag(field, texts));
  } catch (const json::exception&) {
    throw CLI::ValidationError(field.name, std::string("must be ") + field.type + ", got " + texts.back() + ".");
  } catch (const Error& error) {
    throw CLI::ValidationError(error.what());
  }
}

}  // namespace

void add_sampling_flags(CLI::App& app, SamplingParams& params) {
  for (const Field& field : kFields) {
    if (field.name == std::string_view("stream_interval")) continue;  // that flag is the engine's
    std::string flag(field.name);
    std::replace(flag.begin(), flag.end(), '_', '-');
    CLI::Option* option = nullptr;
    if (*field.type == '\0') {
      option = app.add_flag_function(
          "--" + flag + ",!--no-" + flag, [&field, &params](int64_t count) { set_field(field, params, count > 0); },
          field.help);
    } else {
      const std::string names = field.name == std::string_view("sampling_seed") ? "--" + flag + ",--seed" : "--" + flag;
      option = app.add_option_function<std::vector<std::string>>(
          names, [&field, &params](const std::vector<std::string>& texts) { set_from_flag(field, params, texts); },
          field.help);
      option->type_name(field.type)->expected(1)->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
    }
    option->group("Sampling");
  }
}

void apply_sampling_json(const json& object, SamplingParams& params) {
  if (!object.is_object())
    throw Error(ErrorKind::kType, "sampling_params must be an object, got " + object.dump() + ".");
  for (const auto& [name, value] : object.items()) set_field(find_field(name), params, value);
}

}  // namespace tokenmill::cli
