// tokenmill reference: the tables of docs/server_args.md and docs/sampling_params.md, from the tables of options.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>

#include "cli/command.h"
#include "tokenmill/sampling_params.h"
#include "tokenmill/server_args.h"

namespace tokenmill::cli {
namespace {

// Text in a cell of a Markdown table.
std::string cell(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '|' || c == '<' || c == '*' || c == '_') out += '\\';
    out += c;
  }
  return out;
}

std::string code(std::string_view text) {
  std::string out = "`";
  for (const char c : text) {
    if (c == '|') out += '\\';
    out += c;
  }
  return out + "`";
}

void print_row(std::string_view name, std::string_view type, std::string_view value, std::string_view help) {
  std::printf("| %s | %s | %s | %s |\n", code(name).c_str(), code(type).c_str(), code(value).c_str(),
              cell(help).c_str());
}

void print_head() { std::printf("| name | type | default | meaning |\n|---|---|---|---|\n"); }

void print_server_args() {
  struct Part {
    FieldStatus status;
    const char* title;
  };
  const Part parts[] = {{FieldStatus::kHonoured, "## What the engine does"},
                        {FieldStatus::kServerOnly, "## For the server app\n\nAccepted everywhere, used by the server."},
                        {FieldStatus::kNotBuilt, "## Not built yet\n\nAny value but the default is an error."}};
  bool first = true;
  for (const Part& part : parts) {
    if (std::none_of(server_args_fields().begin(), server_args_fields().end(),
                     [&](const ServerArgsField& field) { return field.status == part.status; })) {
      continue;
    }
    std::printf("%s%s\n\n", first ? "" : "\n", part.title);
    first = false;
    print_head();
    for (const ServerArgsField& field : server_args_fields()) {
      const std::string value = field.name == "model_path" ? "required" : std::string(field.default_text);
      if (field.status == part.status) print_row(field.name, field.type, value, field.help);
    }
  }
}

void print_sampling_params() {
  print_head();
  for (const SamplingParamsField& field : sampling_params_fields()) {
    print_row(field.name, field.type, field.default_text, field.help);
  }
}

}  // namespace

Command add_reference(CLI::App& parent) {
  auto table = std::make_shared<std::string>();
  CLI::App* app = parent.add_subcommand("reference", "Print a table of options in Markdown");
  app->group("");  // for tools/make_reference.py
  app->add_option("table", *table, "Which one")->required()->check(CLI::IsMember({"server-args", "sampling-params"}));
  return {app, [table] {
            if (*table == "server-args") {
              print_server_args();
            } else {
              print_sampling_params();
            }
            return static_cast<int>(kExitOk);
          }};
}

}  // namespace tokenmill::cli
