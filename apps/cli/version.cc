#include <CLI/CLI.hpp>
#include <cstdio>

#include "cli/command.h"
#include "tokenmill/engine.h"

namespace tokenmill::cli {

Command add_version(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("version", "Print the version");
  return {app, [] {
            std::printf("%s\n", version().c_str());
            return static_cast<int>(kExitOk);
          }};
}

}  // namespace tokenmill::cli
