// Which tensors a ModelConfig needs, and how Hugging Face and GGUF files spell their canonical names.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/model_config.h"

namespace tokenmill {

struct TensorSpec {
  std::string name;            // canonical
  std::vector<int64_t> shape;  // outermost first
};

// Every tensor the model has, in the order of the forward pass.
std::vector<TensorSpec> tensor_specs(const ModelConfig& config);

// "model.layers.0.…", "language_model.model.layers.0.…" -> "layers.0.…". Other names come back as they are.
std::string_view canonical_from_hf(std::string_view name);

// "layers.0.mlp.up_proj.weight" -> "blk.0.ffn_up.weight"; "" where GGUF has no such tensor.
std::string gguf_from_canonical(std::string_view name, bool sandwich_norms);

bool is_norm(std::string_view canonical_name);

std::string shape_text(const std::vector<int64_t>& shape);  // "[2, 3]"

}  // namespace tokenmill
