// Gemma 3's text model (arXiv:2503.19786): norms before and after each branch, local layers with a window and a rope of
// their own between global ones, scaled embeddings, GELU.
#pragma once

#include <memory>

#include "models/model.h"
#include "nn/weight_loader.h"

namespace tokenmill {

std::unique_ptr<Model> load_gemma3(WeightLoader& loader);

}  // namespace tokenmill
