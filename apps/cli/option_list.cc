#include "cli/option_list.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <sstream>

namespace tokenmill::cli {
namespace {

// CLI11 spells a set of allowed values "{a,b}" after the type.
std::vector<std::string> choices_in(std::string& type) {
  const size_t open = type.find('{'), close = type.find('}');
  if (open == std::string::npos || close == std::string::npos) return {};
  std::istringstream list(type.substr(open + 1, close - open - 1));
  std::vector<std::string> choices;
  for (std::string choice; std::getline(list, choice, ',');) choices.push_back(choice);
  type.resize(open);
  if (!type.empty() && type.back() == ':') type.pop_back();
  return choices;
}

OptionInfo describe_option(const CLI::Option& option) {
  OptionInfo info;
  info.long_names = option.get_lnames();
  info.short_names = option.get_snames();
  info.help = option.get_description();
  info.group = option.get_group();
  if (option.get_items_expected_max() > 0) {
    std::string type = option.get_type_name();
    info.choices = choices_in(type);
    info.value = type.empty() ? "VALUE" : type;
  }
  return info;
}

}  // namespace

CommandInfo describe(const CLI::App& app) {
  CommandInfo info{.name = app.get_name(), .help = app.get_description(), .options = {}, .positionals = {}};
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_group().empty()) continue;  // hidden
    OptionInfo described = describe_option(*option);
    if (option->get_positional()) {
      described.long_names = {option->get_name(/*positional=*/true)};
      info.positionals.push_back(std::move(described));
    } else {
      info.options.push_back(std::move(described));
    }
  }
  // A group's options follow each other, as in --help; the groups in the order of their first option.
  std::vector<std::string> groups;
  for (const OptionInfo& option : info.options) groups.push_back(option.group);
  const auto place = [&](const OptionInfo& option) { return std::find(groups.begin(), groups.end(), option.group); };
  std::stable_sort(info.options.begin(), info.options.end(),
                   [&](const OptionInfo& a, const OptionInfo& b) { return place(a) < place(b); });
  return info;
}

std::vector<CommandInfo> describe_subcommands(const CLI::App& app) {
  std::vector<CommandInfo> commands;
  for (const CLI::App* command : app.get_subcommands(nullptr)) {
    if (!command->get_group().empty()) commands.push_back(describe(*command));
  }
  return commands;
}

}  // namespace tokenmill::cli
