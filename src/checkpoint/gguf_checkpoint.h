// Opens a GGUF file: metadata -> ModelConfig, tensors under canonical names in Hugging Face's row order.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "base/gguf_file.h"
#include "checkpoint/checkpoint.h"

namespace tokenmill {

// Everything but dtype and quantized, which the tensors decide. Throws Error naming file, key, rule and value.
ModelConfig parse_gguf_config(const GgufFile& file);

// ggml's type number -> WeightType; nullopt where it is not supported.
std::optional<WeightType> weight_type_of_ggml(uint32_t type);
// "Q4_K", "IQ2_XXS", …, or "type 99".
std::string ggml_type_name(uint32_t type);

std::unique_ptr<Checkpoint> open_gguf(const std::string& path, const CheckpointOptions& options);

}  // namespace tokenmill
