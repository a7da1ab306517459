// What the parser knows of every subcommand and option, as plain values: shell completion and manual page are made of
// it, so that nothing is declared a second time.
#pragma once

#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace tokenmill::cli {

struct OptionInfo {
  std::vector<std::string> long_names;   // without dashes: "top-p"
  std::vector<std::string> short_names;  // "m"
  std::string value;                     // the value's type; "": a flag
  std::vector<std::string> choices;      // the only values, where there are such
  std::string help, group;
};

struct CommandInfo {
  std::string name, help;
  std::vector<OptionInfo> options;
  std::vector<OptionInfo> positionals;  // long_names holds the name
};

CommandInfo describe(const CLI::App& app);
// Those that --help lists, in its order.
std::vector<CommandInfo> describe_subcommands(const CLI::App& app);

}  // namespace tokenmill::cli
