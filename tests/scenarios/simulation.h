// A seeded random life of the scheduler against the toy device: shared prefixes, n > 1, aborts, lack of blocks, failing
// steps, logits that are no numbers. Every output is compared with what the tokens alone demand.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "scenarios/script.h"
#include "scenarios/shadow_device.h"
#include "sched/scheduler.h"

namespace tokenmill::testing {

class Violation : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct SimulationOptions {
  uint64_t seed = 1;
  int64_t steps = 500;          // of one world: one pool, one policy
  bool check_integrity = true;  // after every schedule and commit
  bool overlap = false;         // steps are launched before the one before them is committed, where the scheduler can
  // Makes another device for the world's pool, which is given each step that the toy device has run, and throws where
  // it read other tokens. Null: none.
  using Witness = std::function<void(const Batch&, const ShadowDevice&)>;
  std::function<Witness(const SchedulerOptions&)> make_witness = nullptr;
};

struct SimulationCounts {
  int64_t steps = 0, finished = 0, aborted = 0, failed_steps = 0, retractions = 0, preemptions = 0, evictions = 0,
          copies = 0, cached_tokens = 0, too_large = 0, mixed_steps = 0, timeouts = 0, pins = 0, pins_refused = 0,
          window_evictions = 0, failed_acquires = 0, ahead_steps = 0, wasted_rows = 0;
  void add(const SimulationCounts& other);
};

// One world from its seed to the last output. Throws Violation (or InvariantError) when anything is wrong.
class Simulation {
 public:
  explicit Simulation(const SimulationOptions& options);
  SimulationCounts run();
  const Script& script() const { return script_; }  // of what was done so far

 private:
  struct Expected {
    std::vector<int32_t> output;
    size_t received = 0;
    SequenceSpec spec;
    double submitted = 0;
    bool may_abort = false;  // aborted or failed by us
    bool may_be_too_large = false;
  };

  void draw_options();
  int64_t draw(int64_t low, int64_t high);  // inclusive
  bool chance(double probability);
  std::vector<int32_t> draw_prompt();
  SequenceSpec draw_spec();
  void submit();
  void abort_some();
  void step(bool adding);
  const Batch* plan(ScriptOp::Kind kind);
  void run_batch(const Batch& batch, bool adding);
  void commit();
  void take_events();
  void check_batch(const Batch& batch);
  void check_event(const SequenceEvent& event);
  void fail(const std::string& what) const;

  SimulationOptions options_;
  std::mt19937_64 random_;
  SchedulerOptions config_;
  int32_t vocab_size_ = 0;
  double add_probability_ = 0, abort_probability_ = 0, fail_probability_ = 0, invalid_probability_ = 0,
         pin_probability_ = 0;
  double clock_ = 0;
  uint64_t next_pin_ = 0;
  bool acquire_failed_ = false;  // in this step
  uint64_t acquires_ = 0;        // in this step
  Script script_;
  std::vector<uint64_t> pins_;
  int64_t prompt_max_ = 0, new_max_ = 0;
  std::vector<std::vector<int32_t>> families_;
  std::unique_ptr<ShadowDevice> device_;
  SimulationOptions::Witness witness_;
  std::unique_ptr<Scheduler> scheduler_;
  const Batch* in_flight_ = nullptr;  // with its result
  StepResult result_;
  std::vector<SequenceEvent> events_;  // of this round, in order
  std::map<uint64_t, Expected> live_;
  std::vector<std::vector<int32_t>> history_;  // prompts and outputs of the past, to be continued
  uint64_t next_id_ = 1, next_group_ = 1;
  SimulationCounts counts_;
};

// As many worlds as it takes for `steps` steps.
SimulationCounts simulate(uint64_t first_seed, int64_t steps, bool check_integrity, bool overlap = false);

}  // namespace tokenmill::testing
