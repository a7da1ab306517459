// Sampling parameters from parsed JSON; the public face is set_sampling_param (tokenmill/sampling_params.h).
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

#include "tokenmill/sampling_params.h"

namespace tokenmill {

// Whether a request may name it: a parameter or the alias `seed`.
bool is_sampling_param(std::string_view name);

// Throws Error(kType) on an unknown name or a value of the wrong type.
void set_sampling_json(SamplingParams& params, std::string_view name, const nlohmann::json& value);

// Every key of an object.
void apply_sampling_json(const nlohmann::json& object, SamplingParams& params);

// All parameters, in the table's order.
nlohmann::ordered_json sampling_to_json(const SamplingParams& params);

}  // namespace tokenmill
