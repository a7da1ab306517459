// Sampling parameters as flags, made from the library's table of them.
#pragma once

#include "tokenmill/sampling_params.h"

namespace CLI {
class App;
}

namespace tokenmill::cli {

// A flag for every field of SamplingParams; stream_interval is left to the engine's flag of that name.
void add_sampling_flags(CLI::App& app, SamplingParams& params);

}  // namespace tokenmill::cli
