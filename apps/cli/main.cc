// tokenmill: the command line over the public C++ API.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/terminal.h"
#include "tokenmill/engine.h"

namespace tokenmill::cli {
namespace {

int report(const std::string& message, int code) {
  std::fprintf(stderr, "%s %s\n", style(stderr, "tokenmill: error:", Style::kError).c_str(), message.c_str());
  return code;
}

// "--mem-fraction-statc": the engine's nearest option is most often what was meant.
int report_unknown(const CLI::App& app) {
  std::string message;
  for (const std::string& argument : app.remaining(/*recurse=*/true)) {
    message += (message.empty() ? "unexpected argument " : ", ") + argument;
    if (!argument.starts_with("--")) continue;
    std::string name = argument.substr(2, argument.find('=') - 2);
    std::replace(name.begin(), name.end(), '-', '_');
    std::string nearest(nearest_server_args_field(name));
    std::replace(nearest.begin(), nearest.end(), '_', '-');
    if (!nearest.empty()) message += " (the nearest engine option is --" + nearest + ")";
  }
  return report(message + "; run with --help for what there is", kExitUsage);
}

int run_command(const std::vector<Command>& commands) {
  for (const Command& command : commands) {
    if (!command.app->parsed()) continue;
    try {
      const int code = command.run();
      // A full disk or a closed pipe shows here at the latest; success must not be claimed then.
      if (std::fflush(stdout) != 0) return report("cannot write to standard output", kExitFailure);
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
  const std::vector<Command> commands = {add_generate(app), add_info(app),   add_tokenize(app),
                                         add_bench(app),    add_verify(app), add_version(app)};
  try {
    app.parse(argc, argv);
  } catch (const CLI::ExtrasError&) {
    return report_unknown(app);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;  // prints help to stdout, errors to stderr
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
