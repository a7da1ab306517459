// tokenmill: the command line over the public C++ API.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/nearest.h"
#include "cli/terminal.h"
#include "tokenmill/engine.h"

namespace tokenmill::cli {
namespace {

int report(const std::string& message, int code) {
  std::fprintf(stderr, "%s %s\n", style(stderr, "tokenmill: error:", Style::kError).c_str(), message.c_str());
  return code;
}

// The subcommand's option that an unknown one is nearest to: "--mem-fraction-statc", "--temprature".
std::string nearest_option(const CLI::App& command, const std::string& option) {
  std::vector<std::string> names;
  for (const CLI::Option* known : command.get_options()) {
    for (const std::string& name : known->get_lnames()) names.push_back("--" + name);
  }
  return names.empty() ? "" : nearest_of(option, names);
}

int report_unknown(const CLI::App& app) {
  const std::vector<std::string> extras = app.remaining(/*recurse=*/true);
  // The value of an unknown option is left over too; the option is what matters.
  auto at = std::find_if(extras.begin(), extras.end(), [](const std::string& text) { return text.starts_with("--"); });
  if (at == extras.end()) at = extras.begin();
  std::string message = "unexpected argument " + *at;
  if (at->starts_with("--")) {
    const std::string option = at->substr(0, at->find('='));
    std::string field = option.substr(2);
    std::replace(field.begin(), field.end(), '-', '_');
    if (is_unneeded_server_args_field(field)) {
      return report(option + ": " + unknown_server_args_field_message(field), kExitUsage);
    }
    for (const CLI::App* command : app.get_subcommands()) {
      const std::string nearest = nearest_option(*command, option);
      if (!nearest.empty()) message += " (the nearest option is " + nearest + ")";
    }
  }
  return report(message + "; run with --help for what there is", kExitUsage);
}

// first: the first argument, "" where there is none.
int report_misuse(const CLI::App& app, const CLI::ParseError& error, const std::string& first) {
  if (!app.get_subcommands().empty() || first.empty() || first.starts_with("-")) {
    return report(std::string(error.what()) + "; run with --help for what there is", kExitUsage);
  }
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(command->get_name());
  }
  return report("there is no subcommand " + first + " (the nearest is " + nearest_of(first, names) +
                    "); run with --help for what there is",
                kExitUsage);
}

int run_command(const std::vector<Command>& commands) {
  for (const Command& command : commands) {
    if (!command.app->parsed()) continue;
    try {
      const int code = command.run();
      // A full disk or a closed pipe shows here at the latest; success must not be claimed then.
      if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
        return report("cannot write to standard output", kExitFailure);
      return code;
    } catch (const UsageError& error) {
      return report(error.what(), kExitUsage);
    } catch (const std::exception& error) {
      return report(error.what(), interrupted() ? kExitInterrupted : kExitFailure);
    }
  }
  return kExitUsage;
}

int run(int argc, char** argv) {
  CLI::App app{"tokenmill: a language model engine. Run a subcommand with --help for its options.", "tokenmill"};
  app.set_version_flag("--version", version());
  app.require_subcommand(1);
  const std::vector<Command> commands = {add_generate(app), add_download(app), add_info(app),    add_tokenize(app),
                                         add_bench(app),    add_verify(app),   add_version(app), add_completion(app),
                                         add_man(app),      add_reference(app)};
  try {
    app.parse(argc, argv);
  } catch (const CLI::ExtrasError&) {
    return report_unknown(app);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() != 0) return report_misuse(app, error, argc > 1 ? argv[1] : "");
    app.exit(error);  // prints the help or the version
    return std::fflush(stdout) == 0 ? kExitOk : report("cannot write to standard output", kExitFailure);
  } catch (const std::exception& error) {
    return report(error.what(), kExitUsage);  // an option's own check
  }
  return run_command(commands);
}

}  // namespace
}  // namespace tokenmill::cli

int main(int argc, char** argv) {
  tokenmill::cli::install_interrupt_handler();
  return tokenmill::cli::run(argc, argv);
}
