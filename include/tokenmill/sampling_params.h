// How one request's tokens are drawn and where it ends: contract of the Python and C++ API alike.
//
// Plain values with the documented defaults; validate() is called by Engine::submit.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tokenmill/export.h"
#include "tokenmill/option_value.h"

namespace tokenmill {

// Changes one request's logits [vocab_size] in place before its next token is drawn, given the tokens generated so far;
// penalties, bans, temperature and the cuts come after it, and logprobs are those of the changed logits. Called on the
// engine's thread, so it holds all requests up. What it throws ends its request with finish_reason abort.
using LogitProcessor = std::function<void(std::span<const int32_t> output_ids, std::span<float> logits)>;

struct TOKENMILL_API SamplingParams {
  std::optional<int64_t> max_new_tokens = 128;  // >= 0; nullopt: to the end of the context; 0: prefill only
  int64_t min_new_tokens = 0;                   // [0, max_new_tokens]; EOS and stop ids are masked until then
  double temperature = 1.0;                     // finite, >= 0; below 1e-6 is greedy
  double top_p = 1.0;                           // (0, 1]
  int64_t top_k = -1;                           // -1: off, or >= 1
  double min_p = 0.0;                           // [0, 1]
  double frequency_penalty = 0.0;               // [-2, 2], over output tokens
  double presence_penalty = 0.0;                // [-2, 2], over output tokens
  double repetition_penalty = 1.0;              // (0, 2], over prompt and output tokens
  std::vector<std::string> stop = {};           // at most 32 strings, none empty
  std::vector<int64_t> stop_token_ids = {};
  std::vector<std::string> stop_regex = {};
  bool ignore_eos = false;  // EOS and stop ids are ignored, stop strings still work
  bool no_stop_trim = false;
  bool skip_special_tokens = true;
  bool spaces_between_special_tokens = true;
  int64_t n = 1;  // samples; the prompt is prefilled once, sample i draws from (seed, i)
  std::optional<std::string> json_schema = {}, regex = {}, ebnf = {}, structural_tag = {};  // at most one
  std::map<int64_t, double> logit_bias = {};  // added to the logits of these ids
  std::vector<std::string> bad_words = {};
  std::optional<std::vector<int64_t>> allowed_token_ids = {};
  std::optional<uint64_t> sampling_seed = {};
  std::optional<int64_t> stream_interval = {};  // tokens; nullopt: ServerArgs::stream_interval
  // Null: none. The one member that is not in the table of parameters.
  std::shared_ptr<const LogitProcessor> custom_logit_processor = {};

  // Throws Error(kValue) in the form `top_p must be in (0, 1], got 1.5.`; checks what needs no model.
  void validate() const;
};

// The table of parameters, in the order above: CLI flags, JSON keys, the Python dataclass and the reference are made
// from it (src/engine/sampling_params_fields.cc).
struct SamplingParamsField {
  std::string_view name = {};
  std::string_view type = {};          // "int", "float", "bool", "list[str] | None", …
  std::string_view default_text = {};  // as Python writes it
  std::string_view help = {};
  // Throws Error(kType) `top_k must be int, got 'x'.`; ranges are validate()'s business.
  void (*set)(SamplingParams&, const OptionValue&);
  OptionValue (*get)(const SamplingParams&);
};

TOKENMILL_API std::span<const SamplingParamsField> sampling_params_fields();
// "seed" is another name of sampling_seed. Throws Error(kType) for an unknown name, naming the nearest known one.
TOKENMILL_API const SamplingParamsField& find_sampling_params_field(std::string_view name);
// Sets one parameter from JSON text such as "0.5", "null" or "[\"a\"]". Throws Error(kType | kValue).
TOKENMILL_API void set_sampling_param(SamplingParams& params, std::string_view name, std::string_view json);

}  // namespace tokenmill
