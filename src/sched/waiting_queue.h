// The sequences that wait, in the order of the policy. Every one hangs on the radix tree (PrefixWatch), so the order by
// matched prefix is kept by the changes of the tree and never recomputed from the prompts.
//
// Overtaking is bounded: a sequence is due once as many have left the queue as had arrived up to its own unit, plus
// overtake_max; what is due goes first, in order of arrival.
#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <tuple>

#include "cache/radix_cache.h"
#include "sched/policy.h"
#include "sched/sequence.h"

namespace tokenmill {

class WaitingQueue {
 public:
  WaitingQueue(SchedulePolicy policy, uint64_t seed, int64_t overtake_max, RadixCache& cache);

  void add(std::span<Sequence* const> unit);
  void requeue(Sequence& sequence);  // retracted: keeps its arrival
  void remove(Sequence& sequence);   // admitted or aborted

  // Brings the order up to date; call before a scan.
  void refresh();
  // A scan in order: begin_scan(), then next() until null. The sequence last returned may be removed.
  void begin_scan();
  Sequence* next();
  Sequence* front();  // what a scan would return first

  bool empty() const { return order_.empty(); }
  int64_t size() const { return static_cast<int64_t>(order_.size()); }
  std::vector<Sequence*> all() const;

 private:
  struct Entry {
    int64_t rank = 0;
    uint64_t arrival = 0, id = 0;
    Sequence* sequence = nullptr;
    bool operator<(const Entry& other) const {
      return std::tie(rank, arrival, id) < std::tie(other.rank, other.arrival, other.id);
    }
  };
  int64_t rank_of(const Sequence& sequence) const;
  void insert(Sequence& sequence);
  void set_rank(Sequence& sequence, int64_t rank);
  void rank_by_subtree_weight();
  static Entry entry(const Sequence& sequence);
  static Entry arrival_entry(const Sequence& sequence);

  SchedulePolicy policy_;
  uint64_t seed_;
  uint64_t overtake_max_;
  RadixCache& cache_;
  std::set<Entry> order_;
  std::set<Entry> arrivals_;  // rank 0
  uint64_t num_arrived_ = 0, num_left_ = 0;
  bool stale_ = false;  // dfs-weight: the ranks are to be computed again
  std::set<Entry>::iterator due_cursor_, order_cursor_;
};

}  // namespace tokenmill
