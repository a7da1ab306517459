// Files of requests: JSON lines in, JSON lines out, resumed where a run was cut off. docs/batches.md has the formats.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tokenmill/output.h"
#include "tokenmill/sampling_params.h"

namespace tokenmill {

struct BatchProgress {
  int64_t total = 0;          // requests in the input; 0 until it was read through
  int64_t resumed = 0;        // of these, had their result in the output before
  int64_t done = 0;           // got their result in this run
  int64_t failed = 0;         // got an error in this run
  int64_t prompt_tokens = 0;  // of this run, as the two below
  int64_t cached_tokens = 0;  // of prompt_tokens
  int64_t completion_tokens = 0;
};

struct BatchReport : BatchProgress {
  bool stopped = false;         // on_progress ended it before all requests had run
  std::string error_path = {};  // the file that describes the failed lines; empty: there is none
};

// One request that has ended.
struct BatchItem {
  int64_t index = 0;                             // among the requests of the input, from 0
  int64_t line = 0;                              // in the input, from 1
  const std::vector<Output>* outputs = nullptr;  // one a sample; none where it failed
  std::string_view json = {};                    // its lines in the output, or its line in the error file
  std::string_view error = {};                   // why it failed; empty: it did not
};

struct BatchOptions {
  SamplingParams sampling_params = {};  // what a line does not say itself
  bool return_logprob = false;
  int64_t top_logprobs_num = 0;
  // Results in the input's order, each held until those before it have ended; else each as it finishes.
  bool ordered = false;
  // Throw away the results of an earlier run.
  bool overwrite = false;
  // For lines that are no request and requests that fail. nullopt: the output's name with .errors before its suffix.
  std::optional<std::string> error_path = {};
  int64_t window = 4096;  // requests read ahead of the results, at least 1; memory is bounded by it

  // Both on the thread that called run_batch; what they throw ends the batch and comes out of run_batch.
  std::function<void(const BatchItem&)> on_result = {};
  // At least ten times a second; false stops the batch: what is running is aborted, what was written stays.
  std::function<bool(const BatchProgress&)> on_progress = {};
};

}  // namespace tokenmill
