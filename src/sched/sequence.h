// The scheduler's side of one sample: its tokens, what it holds of the cache, where it stands.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "batch/batch.h"
#include "cache/radix_cache.h"
#include "sched/sequence_spec.h"
#include "text/stop_matcher.h"

namespace tokenmill {

enum class SequenceState { kWaiting, kPrefill, kDecode, kEnded };  // kEnded: see Scheduler::Impl::Ended

struct Sequence {
  SequenceSpec spec;
  SequenceState state = SequenceState::kWaiting;

  // Prompt and outputs; empty until the first admission, so that a long queue holds no copies.
  std::vector<int32_t> tokens;
  int64_t num_outputs = 0;
  int64_t kv_len = 0;         // tokens whose K/V is computed and committed
  int64_t scheduled_len = 0;  // the same after the last step in flight
  PrefixLease lease;

  // Waiting.
  PrefixWatch watch;
  uint64_t arrival = 0;  // see WaitingQueue
  int64_t rank = 0;
  uint64_t scan = 0;  // the last one that has returned it

  // So far.
  int64_t cached_tokens = -1;  // of the first prefill; -1: not admitted yet
  int64_t num_retractions = 0;
  double added_seconds = 0;                  // when it was added, for on_first_admission
  uint64_t last_step = 0;                    // the last step it was in
  int32_t slot = 0;                          // its SamplingRow in that step
  std::optional<std::string> abort_message;  // aborted while a step was in flight

  // Sampling.
  bool has_penalty = false;
  TokenCounts counts;
  std::vector<int32_t> dynamic_bans;
  std::optional<StopMatcher> stop_matcher;
  int64_t output_bytes = 0;  // kept only where the scheduler knows the tokens' bytes

  TokenSpan all_tokens() const { return tokens.empty() ? TokenSpan(*spec.prompt) : TokenSpan(tokens); }
  int64_t num_tokens() const { return static_cast<int64_t>(all_tokens().size()); }
  int64_t num_prompt() const { return static_cast<int64_t>(spec.prompt->size()); }
  int64_t new_tokens_left() const { return spec.max_new_tokens - num_outputs; }
};

}  // namespace tokenmill
