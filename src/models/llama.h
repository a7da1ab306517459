// Llama's forward pass (arXiv:2302.13971), shared by its kin: Mistral (sliding window), Qwen2 (biases on q, k, v) and
// Qwen3 (norms on each head's q and k), which differ in ModelConfig only.
#pragma once

#include <memory>

#include "models/model.h"
#include "nn/weight_loader.h"

namespace tokenmill {

std::unique_ptr<Model> load_llama(WeightLoader& loader);

}  // namespace tokenmill
