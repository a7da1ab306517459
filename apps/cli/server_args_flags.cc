#include "cli/server_args_flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <string>
#include <vector>

#include "cli/command.h"
#include "tokenmill/error.h"

namespace tokenmill::cli {
namespace {

const char* group_of(FieldStatus status) {
  switch (status) {
    case FieldStatus::kHonoured:
      return "Engine options";
    case FieldStatus::kServerOnly:
      return "Accepted for the server app, without effect here";
    case FieldStatus::kNotBuilt:
      return "Not built yet (any value but the default is an error)";
  }
  return "";
}

std::string flag_name(std::string_view field) {
  std::string flag(field);
  std::replace(flag.begin(), flag.end(), '_', '-');
  return flag;
}

void set_field(const ServerArgsField& field, ServerArgs& args, const std::string& text) {
  try {
    field.set(args, text);
  } catch (const Error& error) {
    throw CLI::ValidationError(error.what());
  }
}

}  // namespace

void add_server_args_flags(CLI::App& app, ServerArgs& args) {
  for (const ServerArgsField& field : server_args_fields()) {
    const std::string flag = flag_name(field.name);
    const std::string help = std::string(field.help) + " [" + std::string(field.default_text) + "]";
    CLI::Option* option = nullptr;
    if (field.type.starts_with("bool")) {
      option = app.add_flag_function(
          "--" + flag + ",!--no-" + flag,
          [&field, &args](int64_t count) { set_field(field, args, count > 0 ? "true" : "false"); }, help);
    } else if (field.name == "model_path") {
      option = app.add_option_function<std::string>(
          "-m,--" + flag, [&field, &args](const std::string& text) { set_field(field, args, text); },
          std::string(field.help));
      option->required();
    } else {
      option = app.add_option_function<std::string>(
          "--" + flag, [&field, &args](const std::string& text) { set_field(field, args, text); }, help);
    }
    if (!field.type.starts_with("bool")) option->type_name(std::string(field.type));
    option->group(field.name == "model_path" ? "Model" : group_of(field.status));
  }
}

void check_server_args(const ServerArgs& args) {
  try {
    args.validate();
  } catch (const Error& error) {
    throw UsageError(error.what());
  }
}

}  // namespace tokenmill::cli
