#include "sched/waiting_queue.h"

#include <algorithm>
#include <unordered_map>

#include "base/check.h"

namespace tokenmill {
namespace {

// splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

}  // namespace

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
  switch (policy_) {
    case SchedulePolicy::kLpm:
      return -sequence.watch.matched;
    case SchedulePolicy::kLof:
      return -sequence.spec.max_new_tokens;
    case SchedulePolicy::kPriority:
      return -sequence.spec.priority;
    case SchedulePolicy::kRandom:
      return static_cast<int64_t>(mix(seed_ ^ mix(sequence.spec.id)) >> 1);
    case SchedulePolicy::kDfsWeight:
      return sequence.rank;  // rank_by_subtree_weight
    case SchedulePolicy::kFcfs:
      break;
  }
  return 0;
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

// Depth first, the subtree with most waiting sequences first; a node's own sequences follow those of its children.
void WaitingQueue::rank_by_subtree_weight() {
  struct Branch {
    int64_t weight = 0;
    std::vector<const RadixNode*> children;
    std::vector<Sequence*> own;
  };
  std::unordered_map<const RadixNode*, Branch> branches;
  std::vector<const RadixNode*> roots;
  std::vector<Sequence*> sequences;
  for (const Entry& entry : arrivals_) {
    const RadixNode* node = entry.sequence->watch.node;
    branches[node].own.push_back(entry.sequence);
    sequences.push_back(entry.sequence);
    for (; node; node = node->parent) {
      if (branches[node].weight++ > 0) continue;
      if (node->parent) {
        branches[node->parent].children.push_back(node);
      } else {
        roots.push_back(node);
      }
    }
  }
  auto heavier = [&](const RadixNode* a, const RadixNode* b) { return branches[a].weight > branches[b].weight; };
  std::unordered_map<Sequence*, int64_t> ranks;
  int64_t next_rank = 0;
  struct Open {
    const RadixNode* node;
    bool expanded;
  };
  std::vector<Open> stack;
  auto push_sorted = [&](std::vector<const RadixNode*>& nodes) {
    std::stable_sort(nodes.begin(), nodes.end(), heavier);
    for (auto it = nodes.rbegin(); it != nodes.rend(); ++it) stack.push_back({*it, false});
  };
  push_sorted(roots);
  while (!stack.empty()) {
    Branch& branch = branches[stack.back().node];
    if (!stack.back().expanded) {
      stack.back().expanded = true;
      push_sorted(branch.children);
      continue;
    }
    stack.pop_back();
    for (Sequence* sequence : branch.own) ranks[sequence] = next_rank++;
  }
  for (Sequence* sequence : branches[nullptr].own) ranks[sequence] = next_rank++;  // the cache is disabled
  for (Sequence* sequence : sequences) set_rank(*sequence, ranks.at(sequence));
}

bool WaitingQueue::is_due(const Sequence& sequence) const { return num_left_ >= sequence.arrival + overtake_max_; }

void WaitingQueue::begin_scan() {
  due_cursor_ = arrivals_.begin();
  order_cursor_ = order_.begin();
}

Sequence* WaitingQueue::next() {
  // Priorities are obeyed without a bound: that is what they are for.
  if (policy_ != SchedulePolicy::kPriority && due_cursor_ != arrivals_.end()) {
    Sequence* sequence = due_cursor_->sequence;
    if (is_due(*sequence)) {
      ++due_cursor_;
      // The order's cursor must not stand on what the caller may remove.
      if (order_cursor_ != order_.end() && order_cursor_->sequence == sequence) ++order_cursor_;
      return sequence;
    }
    due_cursor_ = arrivals_.end();
  }
  while (order_cursor_ != order_.end()) {
    Sequence* sequence = (order_cursor_++)->sequence;
    return sequence;
  }
  return nullptr;
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
