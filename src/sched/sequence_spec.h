// What the engine hands the scheduler for one sample of one request, and what it gets back after a step.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "batch/batch.h"
#include "text/stop_matcher.h"
#include "tokenmill/output.h"

namespace tokenmill {

// With max_new_tokens 0: the prompt stays in the cache until Scheduler::unpin(number).
struct PinOrder {
  uint64_t number = 0;  // 0: no pin
  bool brief = false;   // unpin() follows at once: the share that pins may hold does not bound it
};

// One sample. Immutable after Scheduler::add.
struct SequenceSpec {
  uint64_t id = 0;     // unique over the engine's life, rising in order of submission
  uint64_t group = 0;  // samples of one request share a group and a prompt, which is prefilled once, and come in one
                       // add(); 0: none
  std::shared_ptr<const std::vector<int32_t>> prompt;
  std::string cache_namespace;  // prefixes are shared within one namespace only
  int64_t priority = 0;         // larger first
  PinOrder pin;
  int64_t max_new_tokens = 128;  // resolved: never past the end of the context; 0: prefill only
  int64_t min_new_tokens = 0;
  float temperature = 1, top_p = 1, min_p = 0;
  int32_t top_k = 0;
  float frequency_penalty = 0, presence_penalty = 0, repetition_penalty = 1;
  uint64_t seed = 0;
  uint32_t sample_index = 0;
  std::vector<int32_t> stop_ids;                      // EOS and stop ids, sorted; empty with ignore_eos
  std::shared_ptr<const StopPatterns> stop_patterns;  // null: none
  bool no_stop_trim = false;
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::vector<int32_t> banned_ids;  // sorted; bad words of one token
  std::vector<std::vector<int32_t>>
      banned_sequences;  // bad words of several tokens: the last id is banned after the others
  std::optional<std::vector<int32_t>> allowed_ids;  // sorted
  std::shared_ptr<const LogitEdit> logit_edit;      // null: none
  bool want_logprob = false;
  int32_t top_logprobs = 0;
  std::vector<int32_t> logprob_ids;
};

// What happened to one sequence in one commit (or abort): the engine turns it into a delta for the output thread.
struct SequenceEvent {
  uint64_t sequence_id = 0;
  std::vector<SampledToken> tokens;  // new output tokens, in order; a stop token is among them
  int64_t held_bytes = 0;            // of the output's byte text: StopMatcher::held_bytes
  int64_t text_end = -1;             // with finish: the shown text ends here (byte of the byte text); -1: no limit
  std::optional<FinishReason> finish;
  bool unsampleable = false;  // with finish: an edit of the logits threw, or no token was left
  int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0, num_retractions = 0;  // so far
};

}  // namespace tokenmill
