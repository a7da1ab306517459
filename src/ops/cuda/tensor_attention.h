// Paged attention on tensor cores: bf16 or fp16 KV, heads of 64 or 128. attention.cu chooses between it and the plain
// kernel.
#pragma once

#include "base/check.h"
#include "ops/cuda/step_plan.h"

namespace tokenmill {

constexpr int kTensorTile = 64;               // keys
constexpr int kTensorAttentionStagesMax = 3;  // tiles of keys and values in shared memory

struct TensorAttentionArgs {
  const float* q;
  const uint16_t* q_half;  // instead of q, unless null: rounded to dtype, each head in the first half of its place
  int64_t q_stride;        // of q, in floats
  float* out;
  uint16_t* out_half;  // instead of out, unless null; of dtype
  int64_t out_stride;
  DType dtype;  // of the KV memory: kBF16 or kF16
  int group, q_heads, kv_heads, head_dim;
  std::byte* kv;
  int64_t block_bytes;
  int page_shift;
  const PlanRow* rows;
  const int32_t* tables;
  const CudaAttentionItem* items;
  float scale, softcap;
  int window;
  float* partials;  // [kv_heads][num_partials][kTensorPartialFloats]
  int num_partials;
  int* counters;
  int stages;
  // Of launch_few_row_attention() only: the most query rows of a unit; no block has more than two tiles (then at most 8
  // rows).
  int rows_max;
  bool two_tiles;
  // Rows of one query: q is the product itself, not rotated yet, and the new key and value are still to be written.
  // Null: q is rotated and all keys are there.
  const float *cos, *sin;
  int64_t rope_stride;
};

inline int64_t tensor_partial_floats(int head_dim) { return kTensorFewRows * (head_dim + 2); }

constexpr int tensor_stage_bytes(int head_dim) { return 2 * kTensorTile * head_dim * 2; }

inline bool tensor_attention_supports(const KvLayer& kv, int32_t group) {
  return size_of(kv.dtype) == 2 && (kv.head_dim == 64 || kv.head_dim == 128) && group <= kTensorFewRows;
}

// The instance for the arguments' type and head size.
template <class Launch>
Launch* choose_launch(const TensorAttentionArgs& args, Launch* bf16_64, Launch* bf16_128, Launch* f16_64,
                      Launch* f16_128) {
  TM_CHECK(args.head_dim == 64 || args.head_dim == 128);
  if (args.dtype == DType::kF16) return args.head_dim == 64 ? f16_64 : f16_128;
  return args.head_dim == 64 ? bf16_64 : bf16_128;
}

// Units of kTensorFewRows rows, with splits, and of kTensorManyRows, without.
void launch_few_row_attention(const TensorAttentionArgs& args, int num_items, cudaStream_t stream, bool early);
void launch_many_row_attention(const TensorAttentionArgs& args, int num_items, cudaStream_t stream, bool early);

}  // namespace tokenmill
