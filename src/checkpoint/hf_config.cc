#include <filesystem>
#include <system_error>

#include "checkpoint/hf_checkpoint.h"
#include "checkpoint/json_file.h"
#include "checkpoint/load_error.h"

namespace tokenmill {

namespace fs = std::filesystem;

namespace {

constexpr size_t kMaxConfigBytes = size_t{16} << 20;

bool is_there(const std::string& path) {
  std::error_code error;
  return fs::symlink_status(path, error).type() != fs::file_type::not_found;
}

}  // namespace

JsonConfig read_hf_config(const std::string& folder, const CheckpointOptions& options) {
  const std::string file = folder + "/config.json";
  if (!is_there(file)) {
    const bool tokenizer_only = is_there(folder + "/tokenizer.json");
    fail_load(folder,
              tokenizer_only
                  ? "holds a tokenizer but no model (config.json is missing); pass a folder with config.json "
                    "and safetensors or a .gguf file"
                  : "holds no model (config.json is missing); pass a folder with config.json and safetensors or "
                    "a .gguf file");
  }
  nlohmann::json json = read_json_object(file, kMaxConfigBytes);
  apply_config_overrides(json, options.model_override_json);
  JsonConfig out = parse_model_config(json, file);
  const std::string generation = folder + "/generation_config.json";
  const bool eos_overridden =
      !options.model_override_json.empty() &&
      parse_json_object(options.model_override_json, "json_model_override_args").contains("eos_token_id");
  if (is_there(generation) && !eos_overridden) {
    add_generation_config(out.config, read_json_object(generation, kMaxConfigBytes), generation);
  }
  return out;
}

}  // namespace tokenmill
