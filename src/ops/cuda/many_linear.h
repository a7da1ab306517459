// Gated layers of many rows, both products and the activation at once: sm_90a, bf16 or fp16 weights, input and output.
#pragma once

#include "ops/cuda/stream_linear.h"

namespace tokenmill {

// Whether it can, and has work for all multiprocessors most of the time.
bool can_take_many(const StreamProduct& product, int num_sms);
void launch_many_product(const StreamProduct& product, int num_sms, cudaStream_t stream);

}  // namespace tokenmill
