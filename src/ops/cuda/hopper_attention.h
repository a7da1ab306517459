// Paged attention of sequences with many new tokens on sm_90: tensor copies and warpgroup products.
#pragma once

#include "ops/cuda/tensor_attention.h"

namespace tokenmill {

// Units of kTensorManyRows rows, one block each a KV head. num_blocks: of the KV memory. Pages of 8 to 64 keys.
bool hopper_attention_supports(const TensorAttentionArgs& args);
void launch_hopper_attention(const TensorAttentionArgs& args, int64_t num_blocks, int num_items, cudaStream_t stream);

}  // namespace tokenmill
