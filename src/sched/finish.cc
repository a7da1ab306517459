// What a step brought: tokens, ends, and what goes into or out of the cache.
#include <algorithm>

#include "base/check.h"
#include "cache/mutation.h"
#include "sched/scheduler_impl.h"

namespace tokenmill {
namespace {

FinishReason aborted(const std::string& message) {
  FinishReason reason;
  reason.type = FinishReason::Type::kAbort;
  reason.message = message;
  return reason;
}

FinishReason length_reached(int64_t tokens) {
  FinishReason reason;
  reason.type = FinishReason::Type::kLength;
  reason.length = tokens;
  return reason;
}

}  // namespace

SequenceEvent Scheduler::Impl::event_of(const Sequence& sequence) const {
  SequenceEvent event;
  event.sequence_id = sequence.spec.id;
  event.prompt_tokens = sequence.num_prompt();
  event.cached_tokens = std::max<int64_t>(0, sequence.cached_tokens);
  event.completion_tokens = sequence.num_outputs;
  event.num_retractions = sequence.num_retractions;
  return event;
}

// The sequence and all it holds go; the reference is dead afterwards. Only where no step is in flight, or it is in one
// that was launched behind the step that ended it: then what it holds goes with that one.
void Scheduler::Impl::end_sequence(Sequence& sequence, SequenceEvent event, FinishReason reason, bool keep_in_cache) {
  TM_CHECK(!in_flight || sequence.state == SequenceState::kWaiting);
  const bool computing = runs_ahead(sequence);
  plan_changed = true;
  if (sequence.state == SequenceState::kWaiting) {
    waiting.remove(sequence);
  } else {
    if (!computing) release(sequence, keep_in_cache);
    if (partial == &sequence) partial = nullptr;
    std::erase(running, &sequence);
  }
  if (sequence.spec.pin.number != 0 && reason.type != FinishReason::Type::kAbort) pin(sequence, reason);
  ++(reason.type == FinishReason::Type::kAbort ? totals.aborted : totals.finished);
  event.finish = std::move(reason);
  events.push_back(std::move(event));

  auto it = groups.find(sequence.spec.group);
  if (it != groups.end()) {
    Group& group = it->second;
    if (group.prompt == Group::Prompt::kComputing && group.leader == sequence.spec.id) {
      group.prompt = Group::Prompt::kNone;
    }
    if (--group.members == 0) groups.erase(it);
  }
  const auto own = sequences.find(sequence.spec.id);
  if (computing) {
    TM_CHECK(sequence.spec.pin.number == 0);
    sequence.state = SequenceState::kEnded;
    ended.push_back({std::move(own->second), keep_in_cache});
  }
  sequences.erase(own);
}

void Scheduler::Impl::release(Sequence& sequence, bool keep_in_cache) {
  if (mutated(Mutation::kFreedOneStepEarly) && !sequence.lease.node) sequence.lease.blocks.clear();
  if (keep_in_cache) {
    cache.finish(sequence.spec.cache_namespace, sequence.lease, sequence.all_tokens().first(sequence.kv_len));
  } else {
    cache.abandon(sequence.lease);
  }
}

// What the sequence has left in the tree is held from now on; refused where too little would be left for others.
void Scheduler::Impl::pin(const Sequence& sequence, FinishReason& reason) {
  PrefixLease lease = cache.pin(sequence.spec.cache_namespace, sequence.all_tokens());
  const auto share = [](int64_t blocks, int64_t total) {
    return total == 0 ? 0 : static_cast<double>(blocks) / static_cast<double>(total);
  };
  if (sequence.spec.pin.brief ||
      (share(cache.pinned_blocks(), cache.total_blocks()) <= kPinnedShareMax &&
       share(cache.window_pinned_blocks(), cache.window_total_blocks()) <= kPinnedShareMax)) {
    const bool is_new = pinned.emplace(sequence.spec.pin.number, std::move(lease)).second;
    TM_CHECK(is_new);
    return;
  }
  cache.unpin(lease);
  reason = aborted("Pinned prefixes may hold three quarters of the KV pool (" +
                   std::to_string(cache.total_blocks() * options.page_size) +
                   " tokens); this one would go over. Release others, or use a larger max_total_tokens.");
}

void Scheduler::Impl::abort_now(Sequence& sequence, const std::string& message) {
  end_sequence(sequence, event_of(sequence), aborted(message), /*keep_in_cache=*/true);
}

void Scheduler::Impl::commit(const StepResult& result) {
  TM_CHECK(in_flight && result.step == step->batch.step);
  TM_CHECK(result.sampled.size() == step->batch.sampling.size());
  in_flight = false;
  const std::vector<Ended> wasted = std::exchange(ended, {});
  commit_rows();
  for (const Ended& one : wasted) release(*one.sequence, one.keep_in_cache);
  tokens_since_decode_line += static_cast<int64_t>(step->batch.sampling.size() - wasted.size());
  if (step->prefills == 0) {
    ++totals.decode_steps;
    if (totals.decode_steps % options.decode_log_interval == 0) log_decode();
  }
  for (size_t i = 0; i < step->batch.sampling.size(); ++i) {
    commit_token(*step->sequences[step->batch.sampling_rows[i]], result.sampled[i]);
  }
  apply_aborts();
  promote_ahead();
}

// What the step wrote is now there.
void Scheduler::Impl::commit_rows() {
  cache.commit(step->batch.step);
  for (Sequence* sequence : step->sequences) {
    cache.copy_done(sequence->lease);
    cache.settle(sequence->lease);
  }
  std::vector<Sequence*> prefilled;
  for (size_t row = 0; row < step->sequences.size(); ++row) {
    Sequence* const sequence = step->sequences[row];
    if (sequence->state == SequenceState::kEnded) continue;
    sequence->kv_len = step->batch.rows[row].kv_len;  // scheduled_len may be that of the next step
    cache.trim_window(sequence->lease, sequence->kv_len);
    if (sequence->state != SequenceState::kPrefill || sequence->kv_len < sequence->num_tokens()) continue;
    sequence->state = SequenceState::kDecode;
    auto it = groups.find(sequence->spec.group);
    if (it != groups.end()) it->second.prompt = Group::Prompt::kDone;
    if (sequence->new_tokens_left() == 0) prefilled.push_back(sequence);
  }
  for (Sequence* sequence : prefilled) {
    if (sequence->abort_message) continue;
    end_sequence(*sequence, event_of(*sequence), length_reached(sequence->num_outputs), /*keep_in_cache=*/true);
  }
}

void Scheduler::Impl::commit_token(Sequence& sequence, const SampledToken& sampled) {
  if (sequence.abort_message || sequence.state == SequenceState::kEnded) return;
  if (sampled.invalid) {
    SequenceEvent event = event_of(sequence);
    event.unsampleable = true;
    // What is computed may be as wrong as the logits: it does not stay.
    end_sequence(sequence, std::move(event),
                 aborted(!sampled.error.empty() ? sampled.error
                                                : "The model's logits were not numbers, or every token was masked; "
                                                  "nothing can be sampled."),
                 /*keep_in_cache=*/false);
    return;
  }
  sequence.tokens.push_back(sampled.token);
  ++sequence.num_outputs;
  ++totals.generated_tokens;
  count_token(sequence, sampled.token);
  SequenceEvent event = event_of(sequence);
  event.tokens.push_back(sampled);
  std::optional<FinishReason> finish = finish_check(sequence, sampled.token, event);
  if (finish) {
    end_sequence(sequence, std::move(event), *std::move(finish), /*keep_in_cache=*/true);
  } else {
    events.push_back(std::move(event));
  }
}

void Scheduler::Impl::count_token(Sequence& sequence, int32_t token) {
  if (!sequence.has_penalty) return;
  auto& counts = sequence.counts.output_ids;
  auto it = std::lower_bound(counts.begin(), counts.end(), std::pair(token, 0));
  if (it != counts.end() && it->first == token) {
    ++it->second;
  } else {
    counts.insert(it, {token, 1});
  }
}

// Stop string or regex, then stop token or EOS, then length.
std::optional<FinishReason> Scheduler::Impl::finish_check(Sequence& sequence, int32_t token, SequenceEvent& event) {
  const SequenceSpec& spec = sequence.spec;
  const int64_t bytes_before = sequence.output_bytes;
  if (options.token_bytes && (sequence.stop_matcher || !spec.stop_ids.empty())) {
    std::string_view bytes = options.token_bytes(token);
    sequence.output_bytes += static_cast<int64_t>(bytes.size());
    if (sequence.stop_matcher) {
      std::optional<StopMatch> match = sequence.stop_matcher->append(bytes);
      if (match) {
        event.text_end = spec.no_stop_trim ? match->end : match->begin;
        FinishReason reason;
        reason.type = FinishReason::Type::kStop;
        reason.matched = std::move(match->matched);
        return reason;
      }
      event.held_bytes = sequence.stop_matcher->held_bytes();
    }
  }
  if (sequence.num_outputs > spec.min_new_tokens &&
      std::binary_search(spec.stop_ids.begin(), spec.stop_ids.end(), token)) {
    if (!spec.no_stop_trim && options.token_bytes) event.text_end = bytes_before;
    FinishReason reason;
    reason.type = FinishReason::Type::kStop;
    reason.matched = static_cast<int64_t>(token);
    return reason;
  }
  if (sequence.new_tokens_left() <= 0) return length_reached(sequence.num_outputs);
  return std::nullopt;
}

void Scheduler::Impl::apply_aborts() {
  std::vector<Sequence*> ended;
  for (Sequence* sequence : running) {
    if (sequence->abort_message) ended.push_back(sequence);
  }
  for (Sequence* sequence : ended) abort_now(*sequence, *sequence->abort_message);
}

void Scheduler::Impl::fail(uint64_t failed_step, const std::string& message) {
  TM_CHECK(in_flight && !has_ahead && failed_step == step->batch.step);
  in_flight = false;
  const std::vector<Ended> wasted = std::exchange(ended, {});
  for (Sequence* sequence : step->sequences) {
    if (sequence->state == SequenceState::kEnded) continue;
    std::string why = sequence->abort_message.value_or(message);
    end_sequence(*sequence, event_of(*sequence), aborted(why), /*keep_in_cache=*/false);
  }
  cache.fail(failed_step);
  for (const Ended& one : wasted) release(*one.sequence, one.keep_in_cache);
  apply_aborts();
}

}  // namespace tokenmill
