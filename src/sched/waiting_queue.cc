#include "sched/waiting_queue.h"

#include <algorithm>
#include <unordered_map>

#include "base/check.h"

namespace tokenmill {

WaitingQueue::WaitingQueue(SchedulePolicy policy, uint64_t seed, int64_t overtake_max, RadixCache& cache)
    : policy_(policy), seed_(seed), overtake_max_(static_cast<uint64_t>(overtake_max)), cache_(cache) {
  TM_CHECK(overtake_max >= 0);
  due_cursor_ = arrivals_.end();
  order_cursor_ = order_.end();
}

WaitingQueue::Entry WaitingQueue::entry(const Sequence& sequence) {
  return {sequence.rank, sequence.arrival, sequence.spec.id, const_cast<Sequence*>(&sequence)};
}

WaitingQueue::Entry WaitingQueue::arrival_entry(const Sequence& sequence) {
  return {0, sequence.arrival, sequence.spec.id, const_cast<Sequence*>(&sequence)};
}

int64_t WaitingQueue::rank_of(const Sequence& sequence) const {
  if (policy_ == SchedulePolicy::kDfsWeight) return sequence.rank;  // rank_by_subtree_weight
  return waiting_rank(policy_,
                      {.id = sequence.spec.id,
                       .matched = sequence.watch.matched,
                       .max_new_tokens = sequence.spec.max_new_tokens,
                       .priority = sequence.spec.priority},
                      seed_);
}

void WaitingQueue::insert(Sequence& sequence) {
  // The last token is always computed: it gives the logits.
  TokenSpan tokens = sequence.all_tokens();
  sequence.watch.tokens = tokens.first(tokens.size() - 1);
  sequence.watch.owner = &sequence;
  cache_.watch(sequence.spec.cache_namespace, sequence.watch);
  sequence.state = SequenceState::kWaiting;
  sequence.rank = rank_of(sequence);
  TM_CHECK(order_.insert(entry(sequence)).second);
  TM_CHECK(arrivals_.insert(arrival_entry(sequence)).second);
  stale_ = true;
}

void WaitingQueue::add(std::span<Sequence* const> unit) {
  num_arrived_ += unit.size();
  for (Sequence* sequence : unit) {
    sequence->arrival = num_arrived_;
    insert(*sequence);
  }
}

void WaitingQueue::requeue(Sequence& sequence) {
  --num_left_;
  insert(sequence);
}

void WaitingQueue::remove(Sequence& sequence) {
  cache_.unwatch(sequence.watch);
  TM_CHECK(order_.erase(entry(sequence)) == 1);
  TM_CHECK(arrivals_.erase(arrival_entry(sequence)) == 1);
  ++num_left_;
}

void WaitingQueue::set_rank(Sequence& sequence, int64_t rank) {
  if (rank == sequence.rank) return;
  TM_CHECK(order_.erase(entry(sequence)) == 1);
  sequence.rank = rank;
  order_.insert(entry(sequence));
}

void WaitingQueue::refresh() {
  std::vector<PrefixWatch*> changed = cache_.take_changed_watches();
  if (policy_ == SchedulePolicy::kDfsWeight) {
    if (stale_ || !changed.empty()) rank_by_subtree_weight();
  } else if (policy_ == SchedulePolicy::kLpm) {
    for (PrefixWatch* watch : changed) {
      auto& sequence = *static_cast<Sequence*>(watch->owner);
      set_rank(sequence, rank_of(sequence));
    }
  }
  stale_ = false;
}

void WaitingQueue::rank_by_subtree_weight() {
  std::unordered_map<const RadixNode*, int32_t> numbers;
  std::vector<int32_t> parents, places;
  std::vector<Sequence*> sequences;
  for (const Entry& entry : arrivals_) {
    sequences.push_back(entry.sequence);
    places.push_back(-1);
    // Up the path until a node that has its number; every new one waits for its parent's.
    int32_t child = -1;
    for (const RadixNode* node = entry.sequence->watch.node; node; node = node->parent) {
      const auto [found, is_new] = numbers.emplace(node, static_cast<int32_t>(parents.size()));
      if (is_new) parents.push_back(-1);
      (child < 0 ? places.back() : parents[child]) = found->second;
      if (!is_new) break;
      child = found->second;
    }
  }
  const std::vector<int32_t> order = depth_first_order(parents, places);
  for (size_t rank = 0; rank < order.size(); ++rank) set_rank(*sequences[order[rank]], static_cast<int64_t>(rank));
}

void WaitingQueue::begin_scan() {
  due_cursor_ = arrivals_.begin();
  order_cursor_ = order_.begin();
}

Sequence* WaitingQueue::next() {
  if (due_cursor_ != arrivals_.end()) {
    Sequence* sequence = due_cursor_->sequence;
    if (is_due(policy_, sequence->arrival, num_left_, overtake_max_)) {
      ++due_cursor_;
      // The order's cursor must not stand on what the caller may remove.
      if (order_cursor_ != order_.end() && order_cursor_->sequence == sequence) ++order_cursor_;
      return sequence;
    }
    due_cursor_ = arrivals_.end();
  }
  return order_cursor_ == order_.end() ? nullptr : (order_cursor_++)->sequence;
}

Sequence* WaitingQueue::front() {
  begin_scan();
  return next();
}

std::vector<Sequence*> WaitingQueue::all() const {
  std::vector<Sequence*> sequences;
  for (const Entry& entry : arrivals_) sequences.push_back(entry.sequence);
  return sequences;
}

}  // namespace tokenmill
