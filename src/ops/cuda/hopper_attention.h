// Paged attention of sequences with many new tokens on sm_90: tensor copies and warpgroup products.
#pragma once

#include "ops/cuda/tensor_attention.h"

namespace tokenmill {

// Whether this card can, and the layer's pages will do (8 keys or more), besides what tensor_attention.h asks for.
bool hopper_attention_supports(const KvLayer& kv);
// Units of kTensorManyRows rows a KV head, the longest first. num_blocks: of the KV memory; num_keys: of all sequences,
// for the order of work; counters: two, zero before and after. A row's bits depend on its own sequence only: tiles of
// keys begin at multiples of one length, and what a row does not see leaves its sums alone.
void launch_hopper_attention(const TensorAttentionArgs& args, int64_t num_blocks, int num_items, int64_t num_keys,
                             int num_sms, int* counters, cudaStream_t stream);

}  // namespace tokenmill
