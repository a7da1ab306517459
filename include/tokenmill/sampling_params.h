// How one request's tokens are drawn and where it ends: contract of the Python and C++ API alike.
//
// Plain values with the documented defaults; validate() is called by Engine::submit.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace tokenmill {

struct SamplingParams {
  std::optional<int64_t> max_new_tokens = 128;  // >= 0; nullopt: to the end of the context; 0: prefill only
  int64_t min_new_tokens = 0;                   // [0, max_new_tokens]; EOS and stop ids are masked until then
  double temperature = 1.0;                     // finite, >= 0; below 1e-6 is greedy
  double top_p = 1.0;                           // (0, 1]
  int64_t top_k = -1;                           // -1: off, or >= 1
  double min_p = 0.0;                           // [0, 1]
  double frequency_penalty = 0.0;               // [-2, 2], over output tokens
  double presence_penalty = 0.0;                // [-2, 2], over output tokens
  double repetition_penalty = 1.0;              // (0, 2], over prompt and output tokens
  std::vector<std::string> stop;                // at most 32 strings, none empty
  std::vector<int64_t> stop_token_ids;
  std::vector<std::string> stop_regex;
  bool ignore_eos = false;  // EOS and stop ids are ignored, stop strings still work
  bool no_stop_trim = false;
  bool skip_special_tokens = true;
  bool spaces_between_special_tokens = true;
  int64_t n = 1;  // samples; the prompt is prefilled once, sample i draws from (seed, i)
  std::optional<std::string> json_schema, regex, ebnf, structural_tag;  // at most one
  std::map<int64_t, double> logit_bias;                                 // added to the logits of these ids
  std::vector<std::string> bad_words;
  std::optional<std::vector<int64_t>> allowed_token_ids;
  std::optional<uint64_t> sampling_seed;
  std::optional<int64_t> stream_interval;  // tokens; nullopt: ServerArgs::stream_interval

  // Throws Error(kValue) in the form `top_p must be in (0, 1], got 1.5.`; checks what needs no model.
  void validate() const;
};

}  // namespace tokenmill
