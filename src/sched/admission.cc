// Who may start: memory, budgets, and who waits for whom.
#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "sched/scheduler_impl.h"

namespace tokenmill {

// Blocks that running sequences are expected to want beyond what they hold.
int64_t Scheduler::Impl::reserved_blocks() const {
  int64_t blocks = 0;
  for (const Sequence* sequence : running) {
    double expected = std::min(sequence->new_tokens_left(), kLookaheadTokensMax) * ratio.value();
    int64_t wanted = blocks_for(sequence->num_tokens() + static_cast<int64_t>(std::ceil(expected)));
    blocks += std::max<int64_t>(0, wanted - static_cast<int64_t>(sequence->lease.blocks.size()));
  }
  return blocks;
}

// The same of the window group, where nobody wants more than the window and what is being computed.
int64_t Scheduler::Impl::reserved_window() const {
  if (options.window == 0) return 0;
  int64_t blocks = 0;
  for (const Sequence* sequence : running) {
    const double expected = std::min(sequence->new_tokens_left(), kLookaheadTokensMax) * ratio.value();
    const int64_t end = sequence->num_tokens() + static_cast<int64_t>(std::ceil(expected));
    const int64_t chunk = std::max<int64_t>(1, sequence->num_tokens() - sequence->scheduled_len);
    blocks += window_wanted(*sequence, end, std::min(chunk, std::max<int64_t>(1, options.chunked_prefill_size)));
  }
  return blocks;
}

// Whether the window group has room for a sequence that is to be computed from `matched` to `end` tokens, `chunk` of
// them now. When nothing runs it begins with what there is room for.
bool Scheduler::Impl::fit_window(PrefixLease& lease, int64_t matched, int64_t end, const Budget& budget,
                                 int64_t& chunk) const {
  if (options.window == 0) return true;
  const int64_t wanted = window_span(end, chunk) - lease.window_held();
  if (wanted <= cache.window_available_blocks() - budget.reserved_window && matched + chunk <= window_end_max(lease)) {
    return true;
  }
  if (!running.empty()) return false;
  chunk = std::min(chunk, window_end_max(lease) - matched);
  return chunk > 0;
}

bool Scheduler::Impl::must_wait(const Sequence& sequence) const {
  if (!cache.enabled()) return false;
  auto it = groups.find(sequence.spec.group);
  if (it != groups.end() && it->second.prompt == Group::Prompt::kComputing) return true;
  return cache.uncommitted_tokens(sequence.watch) >= kSharedUncommittedMin;
}

// A cheap test before the match, which walks the whole prompt: even with all it could share it does not fit.
bool Scheduler::Impl::fits_surely_not(const Sequence& sequence, const Budget& budget) const {
  if (running.empty()) return false;
  int64_t ahead = std::min(sequence.new_tokens_left(), kLookaheadTokensMax);
  int64_t wanted = blocks_for(sequence.num_tokens() + ahead) - sequence.watch.matched / options.page_size;
  if (cache.available_blocks() - budget.reserved_blocks < wanted) return true;
  if (sequence.watch.matched > 0) return false;
  return cache.window_available_blocks() - budget.reserved_window < window_span(sequence.num_tokens() + ahead, 1);
}

void Scheduler::Impl::admit(Budget& budget) {
  budget.reserved_blocks = reserved_blocks();
  budget.reserved_window = reserved_window();
  waiting.begin_scan();
  int64_t passed = 0;
  while (Sequence* sequence = waiting.next()) {
    if (static_cast<int64_t>(running.size()) >= options.max_running_requests) return;
    if (partial || budget.chunk_tokens <= 0 || budget.prefill_tokens <= 0) return;
    if (must_wait(*sequence)) {
      if (++passed > kFollowersPassedMax) return;
      continue;
    }
    if (fits_surely_not(*sequence, budget)) return;
    if (try_admit(*sequence, budget) == Admitted::kStop) return;
  }
}

Scheduler::Impl::Admitted Scheduler::Impl::try_admit(Sequence& sequence, Budget& budget) {
  TokenSpan tokens = sequence.all_tokens();
  const int64_t total = sequence.num_tokens();
  const int64_t left = sequence.new_tokens_left();
  PartialMatch rows;
  PrefixLease lease = cache.match(sequence.spec.cache_namespace, tokens.first(total - 1), &rows);
  const int64_t end = total + std::min(left, kLookaheadTokensMax);
  // Without its rows a match of the window group may have to end earlier still.
  while (options.window > 0 && running.empty() && rows.num_rows > 0 &&
         cache.available_blocks() < blocks_for(total) - static_cast<int64_t>(lease.blocks.size())) {
    const int64_t whole = lease.tree_tokens;
    cache.abandon(lease);
    lease = cache.match(sequence.spec.cache_namespace, tokens.first(static_cast<size_t>(whole)), &rows);
  }
  const int64_t shared = static_cast<int64_t>(lease.blocks.size());
  const int64_t needed_now = blocks_for(total) - shared;
  const int64_t wanted = blocks_for(end) - shared;

  if (cache.available_blocks() - budget.reserved_blocks < wanted) {
    if (!running.empty()) {
      cache.abandon(lease);
      return Admitted::kStop;
    }
    // Alone, room for its tokens is enough to begin: the next token may be its last, and that one needs no slot.
    const int64_t least = needed_now;
    if (cache.available_blocks() < least && rows.num_rows > 0) {
      cache.copy_done(lease);  // the block to copy from is needed more than its rows
      rows = {};
    }
    if (cache.available_blocks() < least) {
      cache.abandon(lease);
      abort_now(sequence, "The request needs KV memory for at least " + std::to_string(total) +
                              " tokens, but the pool holds " +
                              std::to_string(cache.total_blocks() * options.page_size) + pinned_note() +
                              ". Use a shorter input, or a larger max_total_tokens or mem_fraction_static.");
      return Admitted::kEnded;
    }
  }
  const int64_t matched = lease.tree_tokens + rows.num_rows;
  int64_t chunk = chunk_length(matched, total, budget);
  if (chunk > 0 && !fit_window(lease, matched, end, budget, chunk)) {
    cache.abandon(lease);
    if (!running.empty()) return Admitted::kStop;
    abort_now(sequence, "The request needs KV memory for its window of " + std::to_string(options.window) +
                            " tokens, but the pool of the window layers holds " +
                            std::to_string(cache.window_total_blocks() * options.page_size) + pinned_note() +
                            ". Use a larger max_total_tokens or mem_fraction_static.");
    return Admitted::kEnded;
  }
  if (chunk == 0) {
    cache.abandon(lease);
    return Admitted::kStop;
  }

  if (!acquire(needed_now, lease.blocks) || !cache.acquire_window(blocks_for(matched + chunk), lease)) {
    cache.abandon(lease);  // another step will find room
    return Admitted::kStop;
  }
  waiting.remove(sequence);
  if (sequence.tokens.empty()) sequence.tokens = *sequence.spec.prompt;
  if (rows.num_rows > 0) step->batch.copies.push_back({rows.block, lease.blocks[shared], rows.num_rows});
  if (rows.num_rows > 0 && options.window > 0) {
    step->batch.window_copies.push_back({rows.window_block, lease.window_blocks[shared], rows.num_rows});
  }
  sequence.lease = std::move(lease);
  sequence.state = SequenceState::kPrefill;
  sequence.kv_len = matched;
  if (sequence.cached_tokens < 0) {
    sequence.cached_tokens = matched;
    if (options.on_first_admission) {
      options.on_first_admission(sequence.spec.id, now() - sequence.added_seconds, matched);
    }
    if (options.running_timeout_seconds > 0) {
      running_deadlines.push_back({now() + options.running_timeout_seconds, sequence.spec.id});
    }
    totals.prompt_tokens += total;
    totals.cached_tokens += matched;
  }
  step->cached_tokens += matched;
  running.push_back(&sequence);
  auto it = groups.find(sequence.spec.group);
  if (it != groups.end() && it->second.prompt == Group::Prompt::kNone) {
    it->second.prompt = Group::Prompt::kComputing;
    it->second.leader = sequence.spec.id;
  }
  if (matched + chunk < total) partial = &sequence;
  budget.reserved_blocks += wanted - needed_now;
  budget.reserved_window += window_wanted(sequence, end, 1);
  add_prefill_row(sequence, chunk, budget);
  return Admitted::kYes;
}

// Running sequences of lower priority give way to the first that waits, lowest and youngest first.
void Scheduler::Impl::preempt() {
  waiting.begin_scan();
  Sequence* first = nullptr;
  while ((first = waiting.next()) && must_wait(*first)) {
  }
  if (!first) return;
  auto fits = [&] {
    if (static_cast<int64_t>(running.size()) >= options.max_running_requests) return false;
    Budget budget;
    budget.reserved_blocks = reserved_blocks();
    budget.reserved_window = reserved_window();
    return !fits_surely_not(*first, budget);
  };
  std::vector<Sequence*> victims;
  for (Sequence* sequence : running) {
    if (sequence->spec.priority < first->spec.priority) victims.push_back(sequence);
  }
  std::sort(victims.begin(), victims.end(), [](const Sequence* a, const Sequence* b) {
    return std::pair(a->spec.priority, b->spec.id) < std::pair(b->spec.priority, a->spec.id);
  });
  for (Sequence* victim : victims) {
    if (fits()) return;
    retract(*victim);
    ++totals.preemptions;
  }
}

}  // namespace tokenmill
