// The engine's options as flags, made from server_args_fields(): nothing is declared a second time here.
#pragma once

#include "tokenmill/server_args.h"

namespace CLI {
class App;
}

namespace tokenmill::cli {

// Adds --model-path (required, short -m) and a flag for every other field; `args` must outlive parsing.
void add_server_args_flags(CLI::App& app, ServerArgs& args);

// args.validate(), with a value that is out of range told as a usage error.
void check_server_args(const ServerArgs& args);

}  // namespace tokenmill::cli
