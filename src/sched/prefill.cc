// Chunks and decodes as rows of the Batch.
#include <algorithm>
#include <limits>

#include "base/check.h"
#include "cache/mutation.h"
#include "sched/scheduler_impl.h"

namespace tokenmill {

Scheduler::Impl::Budget Scheduler::Impl::new_budget() const {
  Budget budget;
  budget.chunk_tokens =
      options.chunked_prefill_size > 0 ? options.chunked_prefill_size : std::numeric_limits<int64_t>::max();
  budget.prefill_tokens = options.max_prefill_tokens;
  return budget;
}

// How much of [begin, end) this step computes; 0: nothing, another step will. A chunk that does not reach the end stops
// at a block's border where it can.
int64_t Scheduler::Impl::chunk_length(int64_t begin, int64_t end, const Budget& budget) const {
  const int64_t length = end - begin;
  if (options.chunked_prefill_size <= 0) {
    // A prompt is never cut: one that is over the budget by itself goes alone.
    return length <= budget.prefill_tokens || step->prefills == 0 ? length : 0;
  }
  int64_t most = std::min(budget.chunk_tokens, budget.prefill_tokens);
  if (length <= most) return length;
  int64_t border = (begin + most) / options.page_size * options.page_size;
  if (border > begin) return border - begin;
  return step->prefills == 0 ? most : 0;
}

void Scheduler::Impl::continue_partial(Budget& budget) {
  Sequence& sequence = *partial;
  int64_t chunk = chunk_length(sequence.kv_len, sequence.num_tokens(), budget);
  TM_CHECK(chunk > 0);
  if (options.window > 0) {
    chunk = std::min(chunk, window_end_max(sequence.lease) - sequence.kv_len);
    if (chunk <= 0 && running.size() > 1) return;  // the others go on and end
    if (chunk <= 0) {
      return abort_now(sequence, "Out of KV memory: the request is alone, and its window layers need more than the " +
                                     std::to_string(cache.window_total_blocks() * options.page_size) +
                                     " tokens of their pool" + pinned_note() +
                                     ". Use a larger max_total_tokens or mem_fraction_static.");
    }
    TM_CHECK(cache.acquire_window(blocks_for(sequence.kv_len + chunk), sequence.lease));
  }
  if (sequence.kv_len + chunk == sequence.num_tokens()) partial = nullptr;
  add_prefill_row(sequence, chunk, budget);
}

void Scheduler::Impl::add_prefill_row(Sequence& sequence, int64_t chunk, Budget& budget) {
  const int64_t end = sequence.kv_len + chunk;
  cache.enter(sequence.spec.cache_namespace, sequence.lease, sequence.all_tokens().first(end), step->batch.step);
  add_row(sequence, sequence.kv_len, end);
  if (end == sequence.num_tokens() && sequence.new_tokens_left() > 0) add_sampling_row(sequence);
  if (options.chunked_prefill_size > 0) budget.chunk_tokens -= chunk;
  budget.prefill_tokens -= chunk;
  ++step->prefills;
  step->new_tokens += chunk;
}

void Scheduler::Impl::add_row(Sequence& sequence, int64_t begin, int64_t end) {
  BatchRow row;
  row.sequence_id = sequence.spec.id;
  row.q_len = static_cast<int32_t>(end - begin);
  row.kv_len = static_cast<int32_t>(end);
  row.token_begin = static_cast<int32_t>(step->batch.tokens.size());
  row.block_begin = static_cast<int32_t>(step->batch.block_tables.size());
  row.num_blocks = static_cast<int32_t>(blocks_for(end));
  const std::vector<int32_t>& blocks = sequence.lease.blocks;
  TM_CHECK(row.q_len > 0 && row.num_blocks <= static_cast<int64_t>(blocks.size()));
  if (begin == sequence.num_tokens()) {  // the step in flight is drawing it
    const auto next_slot = static_cast<int32_t>(step->batch.sampling.size());
    step->batch.slot_tokens.push_back(
        {row.token_begin, mutated(Mutation::kSlotOfThisStep) ? next_slot : sequence.slot});
    step->batch.tokens.push_back(0);
  } else {
    step->batch.tokens.insert(step->batch.tokens.end(), sequence.tokens.begin() + begin, sequence.tokens.begin() + end);
  }
  for (int64_t position = begin; position < end; ++position) {
    step->batch.positions.push_back(static_cast<int32_t>(position));
  }
  step->batch.block_tables.insert(step->batch.block_tables.end(), blocks.begin(), blocks.begin() + row.num_blocks);
  if (options.window > 0) {
    const std::vector<int32_t>& window = sequence.lease.window_blocks;
    TM_CHECK(row.num_blocks <= static_cast<int64_t>(window.size()));
    step->batch.window_tables.insert(step->batch.window_tables.end(), window.begin(), window.begin() + row.num_blocks);
  }
  step->batch.rows.push_back(row);
  step->sequences.push_back(&sequence);
  sequence.scheduled_len = end;
  sequence.last_step = step->batch.step;
}

// Samples after the last token of the row that was added last.
void Scheduler::Impl::add_sampling_row(Sequence& sequence) {
  SamplingRow row;
  row.token_index = static_cast<int32_t>(step->batch.tokens.size()) - 1;
  fill_sampling_row(sequence, row);
  sequence.slot = static_cast<int32_t>(step->batch.sampling.size());
  step->batch.sampling.push_back(row);
  step->batch.sampling_rows.push_back(static_cast<int32_t>(step->batch.rows.size()) - 1);
}

// All but the index: what to do with the logits after all tokens so far.
void Scheduler::Impl::fill_sampling_row(Sequence& sequence, SamplingRow& row) {
  const SequenceSpec& spec = sequence.spec;
  if (sequence.has_penalty && sequence.counts.prompt_ids.empty()) {
    std::vector<int32_t>& ids = sequence.counts.prompt_ids;
    ids = *spec.prompt;
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  }
  row.temperature = spec.temperature;
  row.top_k = spec.top_k;
  row.top_p = spec.top_p;
  row.min_p = spec.min_p;
  row.frequency_penalty = spec.frequency_penalty;
  row.presence_penalty = spec.presence_penalty;
  row.repetition_penalty = spec.repetition_penalty;
  row.seed = spec.seed;
  row.sample_index = spec.sample_index;
  row.position = static_cast<uint32_t>(sequence.num_tokens());
  if (sequence.has_penalty) row.counts = &sequence.counts;
  if (!spec.logit_bias.empty()) row.logit_bias = &spec.logit_bias;
  if (!spec.banned_ids.empty()) row.banned_ids = &spec.banned_ids;
  row.banned_ids_more = dynamic_bans(sequence);
  if (spec.allowed_ids) row.allowed_ids = &*spec.allowed_ids;
  if (spec.logit_edit) {
    row.logit_edit = spec.logit_edit.get();
    row.output_ids = std::span(sequence.tokens).last(static_cast<size_t>(sequence.num_outputs));
  }
  row.want_logprob = spec.want_logprob;
  row.top_logprobs = spec.top_logprobs;
  if (!spec.logprob_ids.empty()) row.logprob_ids = &spec.logprob_ids;
}

// Bans that depend on the output so far: stop ids before min_new_tokens, and the last id of a bad word whose others
// were just produced. Null: none.
const std::vector<int32_t>* Scheduler::Impl::dynamic_bans(Sequence& sequence) {
  const SequenceSpec& spec = sequence.spec;
  const bool too_early = sequence.num_outputs < spec.min_new_tokens && !spec.stop_ids.empty();
  if (spec.banned_sequences.empty()) return too_early ? &spec.stop_ids : nullptr;
  std::vector<int32_t>& bans = sequence.dynamic_bans;
  bans.clear();
  if (too_early) bans = spec.stop_ids;
  for (const std::vector<int32_t>& word : spec.banned_sequences) {
    const auto before = static_cast<int64_t>(word.size()) - 1;
    if (before < 0 || before > sequence.num_outputs) continue;
    if (std::equal(word.begin(), word.end() - 1, sequence.tokens.end() - before)) bans.push_back(word.back());
  }
  if (bans.empty()) return nullptr;
  std::sort(bans.begin(), bans.end());
  bans.erase(std::unique(bans.begin(), bans.end()), bans.end());
  return &bans;
}

}  // namespace tokenmill
