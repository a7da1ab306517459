// What runs next. Owns the sequences, the radix cache and the block allocator; knows integers only.
//
//   add/abort ─► waiting ─► schedule(): match, admit, acquire blocks ─► Batch ─► (runner) ─► commit(StepResult) ─►
//   events
//
// One thread. Every step that schedule() returned is answered by exactly one commit() or fail(), in order.
//
// Where a device works beside the host, schedule_ahead() plans the next step before the one in flight is committed:
//
//   schedule() 1 ─► schedule_ahead() 2 ─► commit(1) ─► schedule_ahead() 3 ─► commit(2) …  null: commit, then schedule()
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "batch/batch.h"
#include "cache/eviction.h"
#include "sched/policy.h"
#include "sched/sequence_spec.h"

namespace tokenmill {

struct SchedulerOptions {
  int32_t page_size = 32;
  int32_t num_blocks = 0;
  // Tokens that layers with a window see, and the blocks of their own pool; 0: no such pool.
  int32_t window = 0, window_blocks = 0;
  int64_t context_length = 0;
  int64_t max_running_requests = 256;
  int64_t max_prefill_tokens = 16384;
  int64_t chunked_prefill_size = 512;  // <= 0: off
  bool enable_mixed_chunk = true;
  SchedulePolicy policy = SchedulePolicy::kLpm;
  double schedule_conservativeness = 1.0;
  bool disable_radix_cache = false;
  EvictionPolicy eviction = EvictionPolicy::kLru;
  // A waiting sequence is overtaken by at most this many that were added after it (sequences of one add() may be
  // reordered freely among themselves).
  int64_t overtake_max = 256;
  int64_t decode_log_interval = 40;
  uint64_t random_seed = 0;
  // Bytes of a token, for stop patterns; may be null when no sequence has any.
  std::function<std::string_view(int32_t)> token_bytes;
  // Finished log lines ("Prefill batch. …", contract section 5); null: none.
  std::function<void(const std::string&)> log_info;
  // A sequence starts for the first time: after `queued_seconds`, with so many tokens found in the cache. May be null.
  std::function<void(uint64_t id, double queued_seconds, int64_t cached_tokens)> on_first_admission;
  // For tests: true makes this acquisition of KV blocks fail although there are enough. Null: never.
  std::function<bool()> fail_acquire;
  std::function<double()> now_seconds;  // monotonic; null: the steady clock
  // Seconds; 0: none. A sequence ends with finish = abort when it has waited longer for its first admission, or has
  // been in the engine longer since then (retractions and all).
  double waiting_timeout_seconds = 0, running_timeout_seconds = 0;
};

struct SchedulerStats {
  int64_t running = 0, queue = 0;
  int64_t requests = 0, finished = 0, aborted = 0;
  int64_t prompt_tokens = 0, cached_tokens = 0, generated_tokens = 0;
  int64_t evictions = 0, retractions = 0, preemptions = 0;  // blocks, sequences, sequences
  int64_t timeouts = 0;                                     // sequences; they count as aborted, too
  int64_t blocks_free = 0, blocks_total = 0, blocks_cached = 0, blocks_pinned = 0;
  int64_t window_blocks_free = 0, window_blocks_total = 0, window_blocks_cached = 0, window_evictions = 0;
  int64_t steps = 0, prefill_steps = 0, decode_steps = 0;
  double last_gen_throughput = 0;
};

class Scheduler {
 public:
  explicit Scheduler(SchedulerOptions options);
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Queues sequences as one unit: none is scheduled before all wait.
  void add(std::vector<SequenceSpec> sequences);
  // Ends a sequence; its event (finish = abort with `message`) comes at once, or with the commit of the step it is in.
  // Unknown or finished ids are ignored.
  void abort(uint64_t sequence_id, const std::string& message);

  bool has_work() const;  // something waits or runs
  // The next step, or nullptr when nothing can run now (see take_events for requests it had to end).
  // Valid until the matching commit or fail.
  const Batch* schedule();
  // While one step is in flight: the one after it, where that is no more than the next token of all that go on,
  // whatever the first one draws (Batch::slot_tokens). nullptr: there is more to do, or too little room. The
  // SamplingRows hold no more than their indices until the first step's commit; a row whose sequence that commit ends
  // is computed in vain, and what it holds stays until its own commit.
  const Batch* schedule_ahead();
  void commit(const StepResult& result);
  // The forward of the step planned last failed, after all before it were committed: its sequences end with finish =
  // abort(message), what it wrote leaves the cache.
  void fail(uint64_t step, const std::string& message);
  // Events since the last call, in order.
  std::vector<SequenceEvent> take_events();

  // Empties the radix cache of all but pinned prefixes; false (nothing done) while anything waits or runs.
  bool flush_cache();
  // Gives up the prefix that a sequence with this SequenceSpec::pin has left in the cache. Unknown pins are ignored.
  void unpin(uint64_t pin);
  // What a pin holds in whole blocks: their ids and their tokens, in order. Empty: there is no such pin.
  struct HeldPrefix {
    std::vector<int32_t> blocks, tokens;
  };
  HeldPrefix held_by(uint64_t pin) const;
  // Puts a prefix of whole blocks, computed elsewhere, into the cache as if a request had left it there: takes blocks,
  // evicting as needed, and has those filled that the cache does not hold (index: which of the prefix's). False
  // (nothing done): the pool cannot take it. Between two steps only, and without a window group.
  using FillBlock = std::function<void(int64_t index, int32_t block)>;
  bool insert_prefix(const std::string& cache_namespace, std::span<const int32_t> tokens, const FillBlock& fill);
  SchedulerStats stats() const;
  // Throws InvariantError naming what does not add up: every block is free, in the tree, or owned once; lock counts
  // equal the paths that hold them; no row reads a free block. O(tree).
  void check_integrity() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tokenmill
