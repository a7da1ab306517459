// Opens a Hugging Face folder: config.json with safetensors, or with seeded random weights (load_format dummy).
#pragma once

#include <memory>
#include <string>

#include "checkpoint/checkpoint.h"
#include "checkpoint/config_json.h"

namespace tokenmill {

// config.json with the overrides merged in, and generation_config.json's EOS ids.
JsonConfig read_hf_config(const std::string& folder, const CheckpointOptions& options);

std::unique_ptr<Checkpoint> open_safetensors(const std::string& folder, const CheckpointOptions& options);

// Normal weights of standard deviation 0.02 and norms that multiply by 1, from the seed, the tensor's name and the
// element's index alone; bf16, or f32 where config.json says so. Each tensor is made when it is first found.
std::unique_ptr<Checkpoint> open_dummy(const std::string& folder, const CheckpointOptions& options);

}  // namespace tokenmill
