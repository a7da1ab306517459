// The step after one that still runs: one more token of every sequence that surely goes on, drawn after a token that is
// not known yet.
//
// Only what needs no knowledge of that token is planned so: no admission, no chunk, nobody is retracted. Where there is
// more to do than to go on, nothing is planned ahead, and schedule() does it after the commit. A decode enters nothing
// into the tree before it ends, so a row that turns out to be wasted leaves no trace there.
#include <algorithm>

#include "base/check.h"
#include "sched/scheduler_impl.h"

namespace tokenmill {

// Whether schedule() might do something that is put off by going on.
bool Scheduler::Impl::needs_whole_plan() {
  if (partial) return true;
  for (const std::deque<Deadline>* deadlines : {&waiting_deadlines, &running_deadlines}) {
    if (!deadlines->empty() && deadlines->front().seconds <= now()) return true;
  }
  if (waiting.empty()) return false;
  // Who waits for the prefix of a prompt in this step may start after it.
  return plan_changed || step->prefills > 0 || steps_ahead >= kAheadWhileWaitingMax;
}

// False: not without sending somebody back to the queue. What has been taken by then stays with its sequence.
bool Scheduler::Impl::make_room_ahead(const std::vector<Sequence*>& going_on) {
  int64_t blocks = 0, window_blocks = 0;
  for (const Sequence* sequence : going_on) {
    const int64_t wanted = blocks_for(sequence->scheduled_len + 1);
    blocks += wanted - static_cast<int64_t>(sequence->lease.blocks.size());
    if (options.window > 0) window_blocks += wanted - static_cast<int64_t>(sequence->lease.window_blocks.size());
  }
  if (blocks > cache.available_blocks() || window_blocks > cache.window_available_blocks()) return false;
  for (Sequence* sequence : going_on) {
    const int64_t wanted = blocks_for(sequence->scheduled_len + 1);
    const int64_t missing = wanted - static_cast<int64_t>(sequence->lease.blocks.size());
    if (missing > 0 && !acquire(missing, sequence->lease.blocks)) return false;
    if (!cache.acquire_window(wanted, sequence->lease)) return false;
  }
  return true;
}

const Batch* Scheduler::Impl::schedule_ahead() {
  TM_CHECK(in_flight && !has_ahead);
  if (needs_whole_plan()) return nullptr;
  std::vector<Sequence*> going_on;
  for (Sequence* sequence : running) {
    const bool computing = sequence->last_step == step->batch.step;
    TM_CHECK(computing || sequence->state == SequenceState::kDecode);
    // The commit will put other blocks into its table.
    if (!sequence->lease.duplicates.empty()) return nullptr;
    const bool goes_on = !sequence->abort_message && sequence->new_tokens_left() > (computing ? 1 : 0);
    if (goes_on) going_on.push_back(sequence);
    if (!goes_on && !waiting.empty()) return nullptr;  // its place is for the next step to fill
  }
  if (going_on.empty() || !make_room_ahead(going_on)) return nullptr;

  std::swap(step, ahead);
  step->clear(next_step++);
  for (Sequence* sequence : going_on) {
    const int64_t begin = sequence->scheduled_len;
    add_row(*sequence, begin, begin + 1);
    step->batch.sampling.push_back({.token_index = step->batch.rows.back().token_begin, .temperature = 0});
    sequence->slot = static_cast<int32_t>(step->batch.sampling.size()) - 1;
    step->batch.sampling_rows.push_back(sequence->slot);
    ++step->decodes;
  }
  std::swap(step, ahead);
  ratio.decode_step();
  ++totals.steps;
  ++steps_ahead;
  has_ahead = true;
  return &ahead->batch;
}

// The step in flight has been committed: the next one is now the first, and how to sample its rows is known.
void Scheduler::Impl::promote_ahead() {
  if (!has_ahead) return;
  std::swap(step, ahead);
  has_ahead = false;
  in_flight = true;
  for (size_t i = 0; i < step->batch.sampling.size(); ++i) {
    Sequence& sequence = *step->sequences[static_cast<size_t>(step->batch.sampling_rows[i])];
    if (sequence.state != SequenceState::kEnded) fill_sampling_row(sequence, step->batch.sampling[i]);
  }
}

}  // namespace tokenmill
