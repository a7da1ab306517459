// Products of few rows at the speed at which the weights can be read: sm_90 and later, bf16 or fp16 weights.
#pragma once

#include "ops/backend.h"
#include "ops/cuda/cuda_common.h"

namespace tokenmill {

constexpr int kStreamRowsMax = 32;
// Inputs in fp32 are normed and rounded by the kernel itself, for so many rows and so long ones at most.
constexpr int kStreamFloatRowsMax = 4;
constexpr int64_t kStreamFloatColsMax = 4096;

struct StreamProduct {
  const uint16_t *weight, *second;  // of dtype; second: up of a gated pair, or null
  const float *bias, *second_bias;
  int64_t n, k;
  int rows;
  const void* x;  // of dtype, or fp32
  bool x_float;
  int64_t x_stride;
  const float* norm;  // x_float only; null: none
  float eps;
  bool add;
  Activation activation;
  bool rounds_gated;  // gate and up, before the activation; no is for wide_linear.h only
  float* out;
  uint16_t* out_half;  // instead of out, unless null; of dtype
  int64_t out_stride;
  DType dtype;  // kBF16 or kF16
};

// What the arguments of every kernel take over as it is.
template <class Args>
void take_over(const StreamProduct& product, Args& args) {
  args.bias = product.bias;
  args.second_bias = product.second_bias;
  args.k = static_cast<int>(product.k);
  args.n = static_cast<int>(product.n);
  args.rows = product.rows;
  args.add = product.add;
  args.activation = product.activation;
  args.out = product.out;
  args.out_half = product.out_half;
  args.out_stride = product.out_stride;
}

bool can_stream(const StreamProduct& product);
void launch_stream_product(const StreamProduct& product, int num_sms, cudaStream_t stream);

}  // namespace tokenmill
