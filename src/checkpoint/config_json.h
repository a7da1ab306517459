// config.json and generation_config.json -> ModelConfig, in the spelling of transformers 4 and of 5.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "checkpoint/model_config.h"

namespace tokenmill {

struct JsonConfig {
  ModelConfig config;
  bool has_dtype = false;  // the file says `dtype` or `torch_dtype`; else config.dtype is a guess
};

// Replaces keys of config.json by those of the override (json_model_override_args), whichever spelling either has.
void apply_config_overrides(nlohmann::json& config, const std::string& override_json);

// `file` names config.json in messages. Throws Error.
JsonConfig parse_model_config(const nlohmann::json& config, const std::string& file);

// Adds the EOS ids (and the BOS id, where there is none) of generation_config.json to config.
void add_generation_config(ModelConfig& config, const nlohmann::json& generation, const std::string& file);

}  // namespace tokenmill
