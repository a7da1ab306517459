#include "sched/waiting_queue.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace tokenmill {

WaitingQueue::WaitingQueue(SchedulePolicy policy, uint64_t seed, int64_t overtake_max, RadixCache& cache)
    : policy_(policy), seed_(seed), overtake_max_(static_cast<uint64_t>(overtake_max)), cache_(cache) {
  TM_CHECK(overtake_max >= 0);
}

WaitingQueue::Entry WaitingQueue::entry(const Sequence& sequence) {
  return {sequence.rank, sequence.arrival, sequence.spec.id, const_cast<Sequence*>(&sequence)};
}

WaitingQueue::Entry WaitingQueue::arrival_entry(const Sequence& sequence) {
  return {0, sequence.arrival, sequence.spec.id, const_cast<Sequence*>(&sequence)};
}

int64_t WaitingQueue::rank_of(const Sequence& sequence) const {
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
  sequence.watch.order = sequence.arrival;
  sequence.watch.id = sequence.spec.id;
  cache_.watch(sequence.spec.cache_namespace, sequence.watch);
  sequence.state = SequenceState::kWaiting;
  sequence.rank = rank_of(sequence);
  if (is_ranked()) TM_CHECK(order_.insert(entry(sequence)));
  TM_CHECK(arrivals_.insert(arrival_entry(sequence)));
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
  if (is_ranked()) TM_CHECK(order_.erase(entry(sequence)));
  TM_CHECK(arrivals_.erase(arrival_entry(sequence)));
  ++num_left_;
}

void WaitingQueue::set_rank(Sequence& sequence, int64_t rank) {
  if (rank == sequence.rank) return;
  TM_CHECK(order_.erase(entry(sequence)));
  sequence.rank = rank;
  order_.insert(entry(sequence));
}

void WaitingQueue::refresh() {
  const std::vector<PrefixWatch*> changed = cache_.take_changed_watches();
  if (policy_ != SchedulePolicy::kLpm) return;
  for (PrefixWatch* watch : changed) {
    auto& sequence = *static_cast<Sequence*>(watch->owner);
    set_rank(sequence, rank_of(sequence));
  }
}

void WaitingQueue::begin_scan() {
  ++scan_;
  due_done_ = false;
  last_due_.reset();
  last_taken_.reset();
  front_.clear();
  front_next_ = front_size_ = 0;
}

Sequence* WaitingQueue::next_due() {
  const auto place = last_due_ ? arrivals_.upper_bound(*last_due_) : arrivals_.begin();
  if (place == arrivals_.end() || !is_due(policy_, place->arrival, num_left_, overtake_max_)) return nullptr;
  last_due_ = *place;
  return place->sequence;
}

// What follows in the order and was not returned in this scan.
void WaitingQueue::fill_front() {
  front_.clear();
  front_next_ = 0;
  if (walks_tree()) {
    // A little at first; those that were returned are passed over again, so ever more then.
    front_size_ = std::max(kFrontMin, 2 * front_size_);
    cache_.visit_watches([&](PrefixWatch& watch) {
      auto* sequence = static_cast<Sequence*>(watch.owner);
      if (sequence->scan != scan_) front_.push_back(sequence);
      return front_.size() < front_size_;
    });
    return;
  }
  const OrderedChunks<Entry>& order = is_ranked() ? order_ : arrivals_;
  const bool looks_ahead = policy_ == SchedulePolicy::kLpm && cache_.window() > 0;
  const size_t wanted = looks_ahead ? kFrontMax : kFrontMin;
  auto place = last_taken_ ? order.upper_bound(*last_taken_) : order.begin();
  for (; place != order.end() && front_.size() < wanted; ++place) {
    last_taken_ = *place;
    if (place->sequence->scan != scan_) front_.push_back(place->sequence);
  }
  if (!looks_ahead) return;
  std::vector<std::pair<int64_t, Sequence*>> ahead;
  for (Sequence* sequence : front_) ahead.emplace_back(-cache_.reachable_tokens(sequence->watch), sequence);
  std::stable_sort(ahead.begin(), ahead.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  for (size_t i = 0; i < ahead.size(); ++i) front_[i] = ahead[i].second;
}

// What has waited for long is in no cache of the processor: it is asked for while the one before is looked at.
void WaitingQueue::fetch_ahead() const {
  const auto fetch = [](const void* what, size_t bytes) {
    for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(what) + at);
  };
  if (front_next_ < front_.size()) {
    const TokenSpan tokens = front_[front_next_]->watch.tokens;
    fetch(tokens.data(), std::min<size_t>(tokens.size_bytes(), 512));
  }
  if (front_next_ + 1 < front_.size()) fetch(front_[front_next_ + 1], sizeof(Sequence));
}

Sequence* WaitingQueue::next() {
  Sequence* sequence = due_done_ ? nullptr : next_due();
  if (!sequence) {
    due_done_ = true;
    if (front_next_ == front_.size()) fill_front();
    if (front_next_ == front_.size()) return nullptr;
    sequence = front_[front_next_++];
    fetch_ahead();
  }
  sequence->scan = scan_;
  return sequence;
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
