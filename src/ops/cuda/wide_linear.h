// Products with the same bits for a row whatever the others are and however many: deterministic inference. sm_90a, bf16
// or fp16 weights.
#pragma once

#include "ops/cuda/stream_linear.h"

namespace tokenmill {

constexpr int kWideRowsMax = 64;  // above, many_linear.h makes the same bits

// Whether the weight's shape and the input's alignment will do; the number of rows does not matter.
bool can_widen(const StreamProduct& product);
void launch_wide_product(const StreamProduct& product, int num_sms, cudaStream_t stream);

}  // namespace tokenmill
