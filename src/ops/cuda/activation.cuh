// The activations of gated layers.
#pragma once

#include "ops/backend.h"

namespace tokenmill {

__device__ inline float activate(Activation activation, float x) {
  if (activation == Activation::kSilu) return x / (1.0f + expf(-x));
  return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
}

}  // namespace tokenmill
