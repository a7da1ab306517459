// Outputs as JSON: the contract's dict.
#pragma once

#include <nlohmann/json.hpp>

#include "tokenmill/output.h"

namespace tokenmill {

nlohmann::ordered_json output_to_json(const Output& output);

}  // namespace tokenmill
