// Sampling parameters from flags and from JSON, over one table of names.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>

#include "tokenmill/sampling_params.h"

namespace CLI {
class App;
}

namespace tokenmill::cli {

// Adds --temperature, --max-new-tokens and so on; `params` must outlive parsing.
void add_sampling_flags(CLI::App& app, SamplingParams& params);

// Sets what the object names. Throws Error(kType) for an unknown key (with the nearest known one) or a wrong type.
void apply_sampling_json(const nlohmann::json& object, SamplingParams& params);

}  // namespace tokenmill::cli
