#include "tokenmill/sampling_params.h"

#include <cmath>

#include "engine/text_repr.h"
#include "tokenmill/error.h"

namespace tokenmill {
namespace {

constexpr size_t kStopStringsMax = 32;
constexpr int64_t kSamplesMax = 4096;

void check_lengths(const SamplingParams& p) {
  require_rule(p.max_new_tokens.value_or(0) >= 0, "max_new_tokens", "at least 0", p.max_new_tokens);
  require_rule(p.min_new_tokens >= 0 && (!p.max_new_tokens || p.min_new_tokens <= *p.max_new_tokens), "min_new_tokens",
               p.max_new_tokens ? "in [0, max_new_tokens (" + std::to_string(*p.max_new_tokens) + ")]" : "at least 0",
               p.min_new_tokens);
  require_rule(p.n >= 1 && p.n <= kSamplesMax, "n", "in [1, " + std::to_string(kSamplesMax) + "]", p.n);
  require_rule(p.stream_interval.value_or(1) >= 1, "stream_interval", "at least 1", p.stream_interval);
}

void check_numbers(const SamplingParams& p) {
  // Written so that NaN fails every rule.
  require_rule(std::isfinite(p.temperature) && p.temperature >= 0, "temperature", "finite and at least 0",
               p.temperature);
  require_rule(p.top_p > 0 && p.top_p <= 1, "top_p", "in (0, 1]", p.top_p);
  require_rule(p.top_k == -1 || p.top_k >= 1, "top_k", "-1 (off) or at least 1", p.top_k);
  require_rule(p.min_p >= 0 && p.min_p <= 1, "min_p", "in [0, 1]", p.min_p);
  require_rule(p.frequency_penalty >= -2 && p.frequency_penalty <= 2, "frequency_penalty", "in [-2, 2]",
               p.frequency_penalty);
  require_rule(p.presence_penalty >= -2 && p.presence_penalty <= 2, "presence_penalty", "in [-2, 2]",
               p.presence_penalty);
  require_rule(p.repetition_penalty > 0 && p.repetition_penalty <= 2, "repetition_penalty", "in (0, 2]",
               p.repetition_penalty);
}

void check_stops(const SamplingParams& p) {
  require_rule(p.stop.size() <= kStopStringsMax, "stop", "at most 32 strings", static_cast<int64_t>(p.stop.size()));
  for (const std::string& stop : p.stop) require_rule(!stop.empty(), "stop", "made of non-empty strings", stop);
  require_rule(p.stop_regex.size() <= kStopStringsMax, "stop_regex", "at most 32 patterns",
               static_cast<int64_t>(p.stop_regex.size()));
  for (const std::string& regex : p.stop_regex) {
    require_rule(!regex.empty(), "stop_regex", "made of non-empty patterns", regex);
  }
}

void check_token_lists(const SamplingParams& p) {
  for (const int64_t id : p.stop_token_ids) {
    require_rule(id >= 0, "stop_token_ids", "made of token ids of at least 0", id);
  }
  for (const auto& [id, bias] : p.logit_bias) {
    require_rule(id >= 0, "logit_bias", "keyed by token ids of at least 0", id);
    require_rule(std::isfinite(bias), "logit_bias", "made of finite numbers", bias);
  }
  for (const std::string& word : p.bad_words) {
    require_rule(!word.empty(), "bad_words", "made of non-empty strings", word);
  }
  if (p.allowed_token_ids) {
    if (p.allowed_token_ids->empty()) throw_rule("allowed_token_ids", "None or a list of at least one token id", "[]");
    for (const int64_t id : *p.allowed_token_ids) {
      require_rule(id >= 0, "allowed_token_ids", "made of token ids of at least 0", id);
    }
  }
}

}  // namespace

void SamplingParams::validate() const {
  check_lengths(*this);
  check_numbers(*this);
  check_stops(*this);
  check_token_lists(*this);
  const int grammars = json_schema.has_value() + regex.has_value() + ebnf.has_value() + structural_tag.has_value();
  if (grammars > 1) {
    throw_rule("json_schema, regex, ebnf and structural_tag", "given at most once together",
               std::to_string(grammars) + " of them");
  }
}

}  // namespace tokenmill
