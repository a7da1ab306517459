// Replaces each None that this machine and build decide, before anything is loaded.
#pragma once

#include "tokenmill/server_args.h"

namespace tokenmill {

// Validates, then fills in. context_length, max_total_tokens, num_threads and, on CUDA,
// max_running_requests are left to the loader and the core, which
// know the model and the backend.
ServerArgs resolve_server_args(ServerArgs args);

}  // namespace tokenmill
