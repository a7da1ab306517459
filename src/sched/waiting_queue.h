// The sequences that wait, in the order of the policy. Every one hangs on the radix tree (PrefixWatch), so the order by
// matched prefix is kept by the changes of the tree and never recomputed from the prompts.
//
// Only the front is looked at, a few at a time:
//   dfs-weight  the walk through the tree as far as it is needed; the tree knows the weights (visit_watches)
//   lpm over sliding windows  the next kFrontMax by what the whole tree matches, of these the longest first by where
//               the match may end
//
// Overtaking is bounded: a sequence is due once as many have left the queue as had arrived up to its own unit, plus
// overtake_max; what is due goes first, in order of arrival.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <tuple>
#include <vector>

#include "cache/ordered_chunks.h"
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

  bool empty() const { return arrivals_.empty(); }
  int64_t size() const { return static_cast<int64_t>(arrivals_.size()); }
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
  static constexpr size_t kFrontMin = 16, kFrontMax = 64;

  // The policy orders them by a rank of their own; else by arrival, or by a walk through the tree.
  bool is_ranked() const { return policy_ != SchedulePolicy::kFcfs && policy_ != SchedulePolicy::kDfsWeight; }
  bool walks_tree() const { return policy_ == SchedulePolicy::kDfsWeight && cache_.enabled(); }
  int64_t rank_of(const Sequence& sequence) const;
  void insert(Sequence& sequence);
  void set_rank(Sequence& sequence, int64_t rank);
  Sequence* next_due();
  void fill_front();
  void fetch_ahead() const;
  static Entry entry(const Sequence& sequence);
  static Entry arrival_entry(const Sequence& sequence);

  SchedulePolicy policy_;
  uint64_t seed_;
  uint64_t overtake_max_;
  RadixCache& cache_;
  OrderedChunks<Entry> order_;     // of a policy that ranks
  OrderedChunks<Entry> arrivals_;  // rank 0
  uint64_t num_arrived_ = 0, num_left_ = 0;

  // The scan: what it has returned carries its number.
  uint64_t scan_ = 0;
  bool due_done_ = true;
  std::optional<Entry> last_due_, last_taken_;
  std::vector<Sequence*> front_;  // to be returned next, in order
  size_t front_next_ = 0, front_size_ = 0;
};

}  // namespace tokenmill
