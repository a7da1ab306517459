// The scheduler's state and the parts of one step; each part has its own file.
//
//   schedule():  admission.cc  preemption, waiting → running      decode.cc  room for decodes, retraction
//                prefill.cc    chunks → rows of the Batch         ahead.cc   the step after one that still runs
//   commit():    finish.cc     tokens → events, ends, cache       scheduler_log.cc  lines and figures
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "cache/radix_cache.h"
#include "sched/new_token_ratio.h"
#include "sched/scheduler.h"
#include "sched/sequence.h"
#include "sched/waiting_queue.h"

namespace tokenmill {

// How many sequences that wait for a leader's prefix one scan passes over; those behind them are looked at next step.
inline constexpr int64_t kFollowersPassedMax = 512;
// Pinned prefixes may hold this share of the pool.
inline constexpr double kPinnedShareMax = 0.75;
// A follower waits for a leader that is computing at least this much of their common prefix.
inline constexpr int64_t kSharedUncommittedMin = 32;
// Admission looks this many tokens ahead at most.
inline constexpr int64_t kLookaheadTokensMax = 4096;
// While sequences wait that have found no place, every so many steps are planned with all that is known.
inline constexpr int64_t kAheadWhileWaitingMax = 16;
// After a retraction the others have room for about this many steps.
inline constexpr int64_t kRetractDecodeSteps = 20;

struct Scheduler::Impl {
  explicit Impl(SchedulerOptions scheduler_options);

  // Samples of one request: the first one admitted computes the prompt, the others wait for that.
  struct Group {
    int64_t members = 0;
    uint64_t leader = 0;
    enum class Prompt { kNone, kComputing, kDone } prompt = Prompt::kNone;
  };
  // What this step may still take.
  struct Budget {
    int64_t chunk_tokens = 0;    // of prefill; INT64_MAX: chunking is off
    int64_t prefill_tokens = 0;  // max_prefill_tokens
    int64_t reserved_blocks = 0;
    int64_t reserved_window = 0;  // blocks of the window group
  };
  enum class Admitted { kYes, kEnded, kStop };
  struct Step {
    Batch batch;
    std::vector<Sequence*> sequences;   // one a row
    int64_t prefills = 0, decodes = 0;  // rows
    int64_t new_tokens = 0, cached_tokens = 0;
    int64_t running_before = 0;
    bool retracted = false;

    void clear(uint64_t number);
  };
  // Ended by a step while its row in the next one already runs, whose token nobody wants: all it holds stays until
  // then.
  struct Ended {
    std::unique_ptr<Sequence> sequence;
    bool keep_in_cache = false;
  };

  // scheduler.cc
  void add(std::vector<SequenceSpec> specs);
  void abort(uint64_t id, const std::string& message);
  const Batch* schedule();
  void expire();
  void unpin(uint64_t pin);
  HeldPrefix held_by(uint64_t pin) const;
  bool insert_prefix(const std::string& cache_namespace, TokenSpan tokens, const FillBlock& fill);
  bool plan_step();  // false: a sequence was ended instead, plan again
  void check_row(const BatchRow& row, const Batch& batch, const PrefixLease& lease) const;
  void check_integrity() const;
  int64_t blocks_for(int64_t tokens) const { return (tokens + options.page_size - 1) / options.page_size; }
  // Window blocks that a sequence holds at most until it has `end` tokens, computed `chunk` at a time.
  int64_t window_span(int64_t end, int64_t chunk) const {
    if (options.window == 0) return 0;
    return std::min(blocks_for(end), blocks_for(options.window + chunk + options.page_size - 1));
  }
  int64_t window_wanted(const Sequence& sequence, int64_t end, int64_t chunk) const {
    return std::max<int64_t>(0, window_span(end, chunk) - sequence.lease.window_held());
  }
  // How far a table of the window group can reach now.
  int64_t window_end_max(const PrefixLease& lease) const {
    return (static_cast<int64_t>(lease.window_blocks.size()) + cache.window_available_blocks()) * options.page_size;
  }
  bool mixes() const { return options.enable_mixed_chunk && options.chunked_prefill_size > 0; }
  // For messages: pinned prefixes take their share of the pool.
  std::string pinned_note() const {
    const int64_t tokens = cache.pinned_blocks() * options.page_size;
    return tokens == 0 ? "" : ", " + std::to_string(tokens) + " of them for pinned prefixes";
  }
  bool acquire(int64_t blocks, std::vector<int32_t>& out) {
    return !(blocks > 0 && options.fail_acquire && options.fail_acquire()) && cache.acquire(blocks, out);
  }
  bool idle() const { return running.empty() && waiting.empty(); }

  // admission.cc
  void admit(Budget& budget);
  Admitted try_admit(Sequence& sequence, Budget& budget);
  bool must_wait(const Sequence& sequence) const;
  bool fits_surely_not(const Sequence& sequence, const Budget& budget) const;
  int64_t reserved_blocks() const;
  int64_t reserved_window() const;
  bool fit_window(PrefixLease& lease, int64_t matched, int64_t end, const Budget& budget, int64_t& chunk) const;
  void preempt();

  // prefill.cc
  Budget new_budget() const;
  void continue_partial(Budget& budget);
  int64_t chunk_length(int64_t begin, int64_t end, const Budget& budget) const;
  void add_prefill_row(Sequence& sequence, int64_t chunk, Budget& budget);
  void add_row(Sequence& sequence, int64_t begin, int64_t end);
  void add_sampling_row(Sequence& sequence);
  void fill_sampling_row(Sequence& sequence, SamplingRow& row);
  const std::vector<int32_t>* dynamic_bans(Sequence& sequence);

  // decode.cc
  bool make_room_for_decodes();  // false: the last sequence was ended
  void add_decode_rows();
  void retract(Sequence& sequence);
  void retract_some();

  // ahead.cc
  const Batch* schedule_ahead();
  bool needs_whole_plan();
  bool make_room_ahead(const std::vector<Sequence*>& going_on);
  bool runs_ahead(const Sequence& sequence) const { return has_ahead && sequence.last_step == ahead->batch.step; }
  void promote_ahead();

  // finish.cc
  void commit(const StepResult& result);
  void fail(uint64_t failed_step, const std::string& message);
  void commit_rows();
  void commit_token(Sequence& sequence, const SampledToken& sampled);
  std::optional<FinishReason> finish_check(Sequence& sequence, int32_t token, SequenceEvent& event);
  void count_token(Sequence& sequence, int32_t token);
  void apply_aborts();
  SequenceEvent event_of(const Sequence& sequence) const;
  void end_sequence(Sequence& sequence, SequenceEvent event, FinishReason reason, bool keep_in_cache);
  void release(Sequence& sequence, bool keep_in_cache);
  void pin(const Sequence& sequence, FinishReason& reason);
  void abort_now(Sequence& sequence, const std::string& message);

  // scheduler_log.cc
  double now() const;
  double token_usage() const;
  void log(const std::string& line) const;
  void log_prefill();
  void log_decode();
  void log_retraction(int64_t retracted, double ratio_before) const;
  bool flush_cache();
  SchedulerStats stats() const;

  SchedulerOptions options;
  RadixCache cache;
  WaitingQueue waiting;
  NewTokenRatio ratio;
  std::unordered_map<uint64_t, std::unique_ptr<Sequence>> sequences;
  std::unordered_map<uint64_t, Group> groups;        // of more than one member
  std::vector<Sequence*> running;                    // in order of admission
  std::unordered_map<uint64_t, PrefixLease> pinned;  // by SequenceSpec::pin
  struct Deadline {
    double seconds = 0;
    uint64_t id = 0;
  };
  std::deque<Deadline> waiting_deadlines, running_deadlines;
  Sequence* partial = nullptr;  // the one running sequence whose prompt is computed in part

  std::unique_ptr<Step> step = std::make_unique<Step>();   // being planned or in flight
  std::unique_ptr<Step> ahead = std::make_unique<Step>();  // with has_ahead: in flight behind `step`
  bool in_flight = false, has_ahead = false;
  std::vector<Ended> ended;   // in the last step in flight
  bool plan_changed = false;  // something may find a place that found none in the last whole plan
  int64_t steps_ahead = 0;    // since the last whole plan
  uint64_t next_step = 1;

  std::vector<SequenceEvent> events;
  SchedulerStats totals;
  int64_t logged_new_tokens = 0, logged_cached_tokens = 0;
  int64_t tokens_since_decode_line = 0;
  double last_decode_line_seconds = 0;
};

}  // namespace tokenmill
