// Sampling on the device: what sample.cc hands to the kernel of sample.cu.
#pragma once

#include <cstdint>

#include "ops/cuda/cuda_common.h"

namespace tokenmill {

struct SampleList {
  int32_t begin, count;
};

// A SamplingRow as the kernel reads it; lists are ranges of the step's id and value arrays.
struct SampleRowArgs {
  float temperature, top_p, min_p;
  int32_t top_k;
  float frequency_penalty, presence_penalty, repetition_penalty;
  double uniform;
  SampleList output, repeat, bias, banned, allowed;
  bool has_allowed, edited, want_logprob, wants_log_sum;
  SampleList logprob_ids;
  int32_t top_logprobs;
  int32_t top_begin, ids_begin;  // places of the answers
};

struct SampleRowOut {
  int32_t token;
  float logprob;
};

struct SampleArgs {
  float* logits;
  int64_t stride;
  int vocab;
  float* raw;  // [rows, vocab], for rows that want the chosen token's logprob after their logits were changed
  const SampleRowArgs* rows;
  const int32_t* ids;
  const float* values;
  SampleRowOut* out;
  int32_t* slots;  // the rows' tokens again, 0 where there is none: what the next step begins with
  int32_t* top_ids;
  float* top_logprobs;
  float* ids_logprobs;
};

// One block a row.
void launch_sample(const SampleArgs& args, unsigned rows, cudaStream_t stream);

}  // namespace tokenmill
