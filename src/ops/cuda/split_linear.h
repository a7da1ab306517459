// Products of some rows with not too many weight rows at the speed at which the weights can be read: sm_90a, bf16 or
// fp16 weights and input. Whether there are too many depends on the card.
#pragma once

#include "ops/cuda/stream_linear.h"

namespace tokenmill {

constexpr int kSplitRowsMax = 64;

bool can_split(const StreamProduct& product, int num_sms);
void launch_split_product(const StreamProduct& product, int num_sms, cudaStream_t stream);

}  // namespace tokenmill
