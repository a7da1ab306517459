// The measurements of `tokenmill bench`: seeded token ids through the public API, timed at the caller.
#pragma once

#include <cstdint>
#include <vector>

#include "tokenmill/engine.h"

namespace tokenmill::cli {

struct BenchSettings {
  int64_t prefill_length = 512;  // tokens of the prefill measurement
  int64_t input_length = 128;    // prompt tokens of the decode measurements
  int64_t output_length = 64;    // tokens a sequence generates there
  std::vector<int64_t> batch_sizes = {1, 8, 32};
  int64_t repeat = 3;  // the median of as many runs is told
  uint64_t seed = 0;
};

struct PrefillResult {
  int64_t tokens = 0;
  double seconds = 0;  // to the first token, median
  double tokens_per_s = 0;
};

struct DecodeResult {
  int64_t batch_size = 0;
  double tokens_per_s = 0;        // from the last sequence's first token to the first one's end: full batches only
  double total_tokens_per_s = 0;  // generated tokens over the whole run, prefill included
  double first_token_p50_s = 0, first_token_p99_s = 0;  // over the sequences of the median run
  double step_p50_s = 0, step_p99_s = 0;                // between two tokens of one sequence
};

// Each stops early and throws Error(kRuntime, "interrupted") when interrupted() is set.
PrefillResult measure_prefill(Engine& engine, const BenchSettings& settings);
DecodeResult measure_decode(Engine& engine, const BenchSettings& settings, int64_t batch_size);

}  // namespace tokenmill::cli
