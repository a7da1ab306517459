// The activations of gated layers.
#pragma once

#include "ops/backend.h"
#include "ops/cuda/device_math.cuh"

namespace tokenmill {

__device__ inline float activate(Activation activation, float x) {
  // Within some units of the last place of fp32; of x below -87, where it would be denormal, -0.
  if (activation == Activation::kSilu) return x * reciprocal_fast(1.0f + exp2_fast(-kLog2e * x));
  return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
}

}  // namespace tokenmill
