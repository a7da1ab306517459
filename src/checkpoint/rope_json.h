// Rotary embedding settings of config.json: `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4).
#pragma once

#include "checkpoint/architectures.h"
#include "checkpoint/json_file.h"
#include "checkpoint/model_config.h"

namespace tokenmill {

// Fills config.rope and config.rope_local; config.max_position must be set.
void read_rope(const JsonObject& config, const Architecture& architecture, ModelConfig& out);

}  // namespace tokenmill
