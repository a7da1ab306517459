#include "sched/scheduler.h"

#include <algorithm>
#include <cstdio>

#include "base/check.h"
#include "sched/scheduler_impl.h"

namespace tokenmill {

Scheduler::Impl::Impl(SchedulerOptions scheduler_options)
    : options(std::move(scheduler_options)),
      cache({options.page_size, options.num_blocks, !options.disable_radix_cache, options.eviction, options.window,
             options.window_blocks, options.policy == SchedulePolicy::kDfsWeight}),
      waiting(options.policy, options.random_seed, options.overtake_max, cache),
      ratio(options.schedule_conservativeness) {
  TM_CHECK(options.max_running_requests >= 1 && options.max_prefill_tokens >= 1 && options.decode_log_interval >= 1);
  last_decode_line_seconds = now();
}

void Scheduler::Impl::Step::clear(uint64_t number) {
  batch.step = number;
  batch.tokens.clear();
  batch.positions.clear();
  batch.rows.clear();
  batch.block_tables.clear();
  batch.copies.clear();
  batch.window_tables.clear();
  batch.window_copies.clear();
  batch.slot_tokens.clear();
  batch.sampling.clear();
  batch.sampling_rows.clear();
  sequences.clear();
  prefills = decodes = new_tokens = cached_tokens = running_before = 0;
  retracted = false;
}

void Scheduler::Impl::add(std::vector<SequenceSpec> specs) {
  std::vector<Sequence*> unit;
  const double time = now();
  for (SequenceSpec& spec : specs) {
    TM_CHECK(spec.prompt && !spec.prompt->empty() && spec.max_new_tokens >= 0);
    auto sequence = std::make_unique<Sequence>();
    sequence->spec = std::move(spec);
    const SequenceSpec& own = sequence->spec;
    if (own.stop_patterns && !own.stop_patterns->empty()) {
      TM_CHECK(options.token_bytes);
      sequence->stop_matcher.emplace(own.stop_patterns);
    }
    sequence->has_penalty = own.frequency_penalty != 0 || own.presence_penalty != 0 || own.repetition_penalty != 1;
    sequence->added_seconds = time;
    unit.push_back(sequence.get());
    bool is_new = sequences.emplace(own.id, std::move(sequence)).second;
    TM_CHECK(is_new);
  }
  for (const Sequence* sequence : unit) {
    if (sequence->spec.group != 0) ++groups[sequence->spec.group].members;
  }
  for (const Sequence* sequence : unit) {  // a sample alone needs no group
    auto it = groups.find(sequence->spec.group);
    if (it != groups.end() && it->second.members == 1) groups.erase(it);
  }
  totals.requests += static_cast<int64_t>(unit.size());
  if (options.waiting_timeout_seconds > 0) {
    const double deadline = time + options.waiting_timeout_seconds;
    for (const Sequence* sequence : unit) waiting_deadlines.push_back({deadline, sequence->spec.id});
  }
  waiting.add(unit);
  plan_changed = true;
}

void Scheduler::Impl::abort(uint64_t id, const std::string& message) {
  auto it = sequences.find(id);
  if (it == sequences.end()) return;
  Sequence& sequence = *it->second;
  if (sequence.state != SequenceState::kWaiting && in_flight) {
    if (!sequence.abort_message) sequence.abort_message = message;
    return;
  }
  abort_now(sequence, message);
}

// What has waited or run for too long ends. Deadlines of one kind rise in order of arrival, so only the first are
// looked at.
void Scheduler::Impl::expire() {
  const auto expire_first = [&](std::deque<Deadline>& deadlines, double seconds, const char* what) {
    if (deadlines.empty()) return;
    for (const double time = now(); !deadlines.empty() && deadlines.front().seconds <= time; deadlines.pop_front()) {
      const auto found = sequences.find(deadlines.front().id);
      if (found == sequences.end()) continue;
      Sequence& sequence = *found->second;
      if (&deadlines == &waiting_deadlines && sequence.cached_tokens >= 0) continue;  // admitted in time
      ++totals.timeouts;
      char message[160];
      std::snprintf(message, sizeof message, "The request has %s for longer than %g s (%s).", what, seconds,
                    &deadlines == &waiting_deadlines ? "waiting_timeout" : "running_timeout");
      abort_now(sequence, message);
    }
  };
  expire_first(waiting_deadlines, options.waiting_timeout_seconds, "waited");
  expire_first(running_deadlines, options.running_timeout_seconds, "run");
}

void Scheduler::Impl::unpin(uint64_t pin) {
  const auto found = pinned.find(pin);
  if (found == pinned.end()) return;
  plan_changed = true;
  cache.unpin(found->second);
  pinned.erase(found);
}

Scheduler::HeldPrefix Scheduler::Impl::held_by(uint64_t pin) const {
  HeldPrefix held;
  const auto found = pinned.find(pin);
  if (found == pinned.end()) return held;
  const RadixNode* node = found->second.node;
  while (node && node->end % options.page_size != 0) node = node->parent;  // a tail that fills no block
  if (!node) return held;
  held.tokens.resize(static_cast<size_t>(node->end));
  held.blocks.assign(found->second.blocks.begin(), found->second.blocks.begin() + node->end / options.page_size);
  for (; !node->is_root(); node = node->parent) {
    std::copy(node->tokens.begin(), node->tokens.end(), held.tokens.begin() + node->begin());
  }
  return held;
}

bool Scheduler::Impl::insert_prefix(const std::string& cache_namespace, TokenSpan tokens, const FillBlock& fill) {
  TM_CHECK(!in_flight && cache.enabled() && options.window == 0);
  TM_CHECK(static_cast<int64_t>(tokens.size()) % options.page_size == 0);
  PartialMatch rows;
  PrefixLease lease = cache.match(cache_namespace, tokens, &rows);
  cache.copy_done(lease);  // a block that is shared in part is filled anew
  const auto held = static_cast<int64_t>(lease.blocks.size());
  const int64_t wanted = static_cast<int64_t>(tokens.size()) / options.page_size;
  if (!cache.acquire(wanted - held, lease.blocks)) {
    cache.abandon(lease);
    return false;
  }
  try {
    for (int64_t i = held; i < wanted; ++i) fill(i, lease.blocks[static_cast<size_t>(i)]);
  } catch (...) {
    cache.abandon(lease);
    throw;
  }
  cache.finish(cache_namespace, lease, tokens);
  return true;
}

const Batch* Scheduler::Impl::schedule() {
  TM_CHECK(!in_flight);
  plan_changed = false;
  steps_ahead = 0;
  expire();
  // Each further round has ended a sequence.
  while (!plan_step()) {
  }
  if (step->batch.rows.empty()) return nullptr;
  if (step->prefills > 0) {
    log_prefill();
    ++totals.prefill_steps;
  }
  ++totals.steps;
  ++next_step;
  in_flight = true;
  return &step->batch;
}

bool Scheduler::Impl::plan_step() {
  step->clear(next_step);
  if (idle()) ratio.reset();

  waiting.refresh();
  if (options.policy == SchedulePolicy::kPriority) preempt();
  bool room = true;
  if (mixes()) room = make_room_for_decodes();
  step->running_before = static_cast<int64_t>(running.size()) - (partial ? 1 : 0);
  Budget budget = new_budget();
  if (partial) continue_partial(budget);
  if (!partial && !step->retracted && !waiting.empty()) admit(budget);
  if (step->prefills == 0 && !mixes()) room = make_room_for_decodes();
  if (step->prefills == 0 || mixes()) add_decode_rows();
  return room || !step->batch.rows.empty() || idle();
}

void Scheduler::Impl::check_integrity() const {
  std::vector<const PrefixLease*> leases;
  for (const auto& [id, sequence] : sequences) {
    leases.push_back(&sequence->lease);
    bool is_running = std::find(running.begin(), running.end(), sequence.get()) != running.end();
    TM_CHECK(is_running == (sequence->state != SequenceState::kWaiting));
    if (!is_running) TM_CHECK(sequence->lease.blocks.empty() && !sequence->lease.node);
    if (!is_running) TM_CHECK(sequence->lease.window_blocks.empty());
    TM_CHECK(static_cast<int64_t>(sequence->lease.blocks.size()) >= blocks_for(sequence->kv_len));
    TM_CHECK(in_flight || (sequence->lease.duplicates.empty() && !sequence->lease.copy_source));
  }
  TM_CHECK(sequences.size() == running.size() + static_cast<size_t>(waiting.size()));
  TM_CHECK(in_flight || (ended.empty() && !has_ahead));
  for (const Ended& one : ended) leases.push_back(&one.sequence->lease);
  for (const auto& [id, lease] : pinned) leases.push_back(&lease);
  cache.check_integrity(leases);
  for (const Step* of : {step.get(), ahead.get()}) {
    if (of == step.get() ? !in_flight : !has_ahead) continue;
    for (size_t row = 0; row < of->batch.rows.size(); ++row) {
      check_row(of->batch.rows[row], of->batch, of->sequences[row]->lease);
    }
  }
}

void Scheduler::Impl::check_row(const BatchRow& row, const Batch& batch, const PrefixLease& lease) const {
  TM_CHECK(std::equal(lease.blocks.begin(), lease.blocks.begin() + row.num_blocks,
                      batch.block_tables.begin() + row.block_begin));
  if (options.window == 0) return;
  // What the row's first token sees is there; a commit meanwhile may have given up what is before.
  const int64_t first = std::max<int64_t>(0, row.kv_len - row.q_len - options.window + 1) / options.page_size;
  TM_CHECK(std::equal(lease.window_blocks.begin() + first, lease.window_blocks.begin() + row.num_blocks,
                      batch.window_tables.begin() + row.block_begin + first));
  for (int64_t i = first; i < row.num_blocks; ++i) TM_CHECK(lease.window_blocks[i] >= 0);
}

Scheduler::Scheduler(SchedulerOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {}
Scheduler::~Scheduler() = default;
void Scheduler::add(std::vector<SequenceSpec> sequences) { impl_->add(std::move(sequences)); }
void Scheduler::abort(uint64_t sequence_id, const std::string& message) { impl_->abort(sequence_id, message); }
bool Scheduler::has_work() const { return !impl_->idle(); }
const Batch* Scheduler::schedule() { return impl_->schedule(); }
const Batch* Scheduler::schedule_ahead() { return impl_->schedule_ahead(); }
void Scheduler::commit(const StepResult& result) { impl_->commit(result); }
void Scheduler::fail(uint64_t step, const std::string& message) { impl_->fail(step, message); }
std::vector<SequenceEvent> Scheduler::take_events() { return std::exchange(impl_->events, {}); }
bool Scheduler::flush_cache() { return impl_->flush_cache(); }
void Scheduler::unpin(uint64_t pin) { impl_->unpin(pin); }
Scheduler::HeldPrefix Scheduler::held_by(uint64_t pin) const { return impl_->held_by(pin); }
bool Scheduler::insert_prefix(const std::string& cache_namespace, std::span<const int32_t> tokens,
                              const FillBlock& fill) {
  return impl_->insert_prefix(cache_namespace, tokens, fill);
}
SchedulerStats Scheduler::stats() const { return impl_->stats(); }
void Scheduler::check_integrity() const { impl_->check_integrity(); }

}  // namespace tokenmill
