// What a request gives back: one Output a streamed chunk or a finished sample.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "tokenmill/export.h"

namespace tokenmill {

struct FinishReason {
  enum class Type { kLength, kStop, kAbort };
  Type type = Type::kLength;
  int64_t length = 0;                                          // kLength: tokens generated
  std::variant<std::monostate, int64_t, std::string> matched;  // kStop: the token id or the stop string
  std::string message;                                         // kAbort: why
};

// One token's natural-log probability, log-softmax of the untempered logits. logprob is nullopt at position 0.
struct TokenLogprob {
  std::optional<float> logprob;
  int32_t token_id = 0;
  std::optional<std::string> text;
};

struct MetaInfo {
  std::string id;
  std::optional<FinishReason> finish_reason;  // nullopt before the last chunk
  int64_t prompt_tokens = 0;                  // the counts are cumulative in every chunk
  int64_t completion_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t num_retractions = 0;
  double e2e_latency = 0;  // seconds since submit
  std::vector<TokenLogprob> output_token_logprobs;
  std::vector<std::vector<TokenLogprob>> output_top_logprobs;
  std::vector<std::vector<TokenLogprob>> output_token_ids_logprobs;
  std::vector<TokenLogprob> input_token_logprobs;
  std::vector<std::vector<TokenLogprob>> input_top_logprobs;
  std::vector<std::vector<TokenLogprob>> input_token_ids_logprobs;
};

// `text`, `output_ids` and the output logprobs are deltas in streamed chunks (cumulative with
// ServerArgs::incremental_streaming_output = false) and whole in joined outputs.
struct Output {
  std::string text;
  std::vector<int32_t> output_ids;
  MetaInfo meta_info;
  int64_t index = 0;   // position of the prompt in its list call, prompt-major over samples when n > 1
  int64_t sample = 0;  // [0, n)
  std::optional<std::vector<int32_t>> prompt_token_ids;

  bool finished() const { return meta_info.finish_reason.has_value(); }
};

// {"text", "output_ids", "meta_info": {...}} on one line; logprobs as lists of [logprob, token id, text or null].
TOKENMILL_API std::string to_json(const Output& output);

}  // namespace tokenmill
