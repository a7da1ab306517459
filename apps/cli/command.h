// What main and the subcommands share: exit codes, the usage error, and one function a subcommand.
//
// Results go to stdout, everything else to stderr; colours and bars only to a terminal.
#pragma once

#include <functional>
#include <stdexcept>

namespace CLI {
class App;
}

namespace tokenmill::cli {

enum ExitCode { kExitOk = 0, kExitFailure = 1, kExitUsage = 2, kExitInterrupted = 130 };

// A command line that cannot be right; main prints it and exits with kExitUsage.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Command {
  CLI::App* app = nullptr;
  std::function<int()> run;  // after parsing; the exit code
};

Command add_generate(CLI::App& parent);
Command add_download(CLI::App& parent);
Command add_info(CLI::App& parent);
Command add_tokenize(CLI::App& parent);
Command add_bench(CLI::App& parent);
Command add_verify(CLI::App& parent);
Command add_version(CLI::App& parent);
// Hidden: what is made from the table of options when tokenmill is built.
Command add_completion(CLI::App& parent);
Command add_man(CLI::App& parent);
Command add_reference(CLI::App& parent);

}  // namespace tokenmill::cli
