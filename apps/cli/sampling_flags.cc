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

using Field = SamplingParamsField;

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

std::string json_from_flag(const Field& field, const std::vector<std::string>& texts) {
  const std::string& text = texts.back();
  if (is_text(field)) return dump_line(text);
  if (is_texts(field)) return dump_line(texts);
  if (is_ids(field)) return "[" + text + "]";
  return text == "None" ? "null" : text;
}

void set_from_flag(const Field& field, SamplingParams& params, const std::vector<std::string>& texts) {
  const std::string text = json_from_flag(field, texts);
  if (!nlohmann::json::accept(text)) {
    throw CLI::ValidationError(std::string(field.name) + " must be " + shown_type(field) + ", got '" + texts.back() +
                               "'.");
  }
  try {
    set_sampling_param(params, field.name, text);
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

}  // namespace tokenmill::cli
