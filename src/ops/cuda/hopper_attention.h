// Paged attention on sm_90: tensor copies, and for sequences with many new tokens warpgroup products.
#pragma once

#include "ops/cuda/tensor_attention.h"

namespace tokenmill {

// Keys and values in shared memory: blocks of eight rows of 64 dimensions with 128-byte swizzling.
constexpr int kBlockBytes = 1024;
template <int kDim>
constexpr int kGroupBytes = kDim / 64 * kBlockBytes;  // eight rows

// Whether this card can, and the layer's pages will do (8 keys or more), besides what tensor_attention.h asks for.
bool hopper_attention_supports(const KvLayer& kv);
// Units of kTensorManyRows rows a KV head, the longest first. num_blocks: of the KV memory; num_keys: of all sequences,
// for the order of work; counters: two, zero before and after. A row's bits depend on its own sequence only: tiles of
// keys begin at multiples of one length, and what a row does not see leaves its sums alone.
void launch_hopper_attention(const TensorAttentionArgs& args, int64_t num_blocks, int num_items, int64_t num_keys,
                             int num_sms, int* counters, cudaStream_t stream);

// launch_few_row_attention() where hopper_attention_supports(). num_blocks: of the KV memory.
void launch_hopper_few_row_attention(const TensorAttentionArgs& args, int64_t num_blocks, int num_items,
                                     cudaStream_t stream);

}  // namespace tokenmill
