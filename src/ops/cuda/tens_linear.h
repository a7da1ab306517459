// Products of tens of rows at the speed at which the weights can be read: sm_90a, bf16 or fp16 weights and input.
#pragma once

#include "ops/cuda/stream_linear.h"

namespace tokenmill {

constexpr int kTensRowsMax = 64;

bool can_take_tens(const StreamProduct& product);
void launch_tens_product(const StreamProduct& product, int num_sms, cudaStream_t stream);

}  // namespace tokenmill
