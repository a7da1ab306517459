// Products of many rows: sm_90a, bf16 or fp16 weights and input. Gated layers have both products and the activation at
// once.
#pragma once

#include "ops/cuda/stream_linear.h"

namespace tokenmill {

// Gated layers with output in bf16 or fp16. Whether it can, and has work for all multiprocessors most of the time.
bool can_take_many(const StreamProduct& product, int num_sms);
void launch_many_product(const StreamProduct& product, int num_sms, cudaStream_t stream);

// Products of many rows with the bits of wide_linear.h, whose can_widen() says whether.
void launch_sliced_product(const StreamProduct& product, int num_sms, cudaStream_t stream);

}  // namespace tokenmill
