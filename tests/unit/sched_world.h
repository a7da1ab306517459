// A scheduler with the toy device behind it, driven by hand.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "scenarios/shadow_device.h"
#include "sched/scheduler.h"

namespace tokenmill::testing {

inline std::vector<int32_t> numbers(int32_t first, int32_t last) {
  std::vector<int32_t> tokens;
  for (int32_t token = first; token <= last; ++token) tokens.push_back(token);
  return tokens;
}

inline SampledToken sampled(int32_t token) {
  SampledToken sampled;
  sampled.token = token;
  return sampled;
}

class World {
 public:
  static constexpr int32_t kVocab = 1 << 20;  // so large that outputs share nothing by chance

  static SchedulerOptions defaults(int32_t page_size, int32_t pool_tokens) {
    SchedulerOptions options;
    options.page_size = page_size;
    options.num_blocks = pool_tokens / page_size;
    options.context_length = 1 << 20;
    return options;
  }
  explicit World(SchedulerOptions options) : device_(options.num_blocks, options.page_size, kVocab) {
    options.log_info = [this](const std::string& line) { lines.push_back(line); };
    scheduler = std::make_unique<Scheduler>(options);
  }

  SequenceSpec spec(std::vector<int32_t> prompt, int64_t max_new_tokens) {
    SequenceSpec spec;
    spec.id = ++last_id_;
    spec.prompt = std::make_shared<std::vector<int32_t>>(std::move(prompt));
    spec.max_new_tokens = max_new_tokens;
    return spec;
  }
  uint64_t submit(std::vector<int32_t> prompt, int64_t max_new_tokens) {
    return submit(spec(std::move(prompt), max_new_tokens));
  }
  uint64_t submit(SequenceSpec spec) {
    uint64_t id = spec.id;
    specs[id] = spec;
    scheduler->add({std::move(spec)});
    return id;
  }
  void submit_unit(std::vector<SequenceSpec> unit) {
    for (const SequenceSpec& spec : unit) specs[spec.id] = spec;
    scheduler->add(std::move(unit));
  }

  // One step; the ids of its rows. Tokens may be forced: id -> what the device "samples".
  std::vector<uint64_t> step() {
    const Batch* batch = scheduler->schedule();
    scheduler->check_integrity();
    std::vector<uint64_t> ids;
    if (batch) {
      for (const BatchRow& row : batch->rows) ids.push_back(row.sequence_id);
      StepResult result = device_.run(*batch);
      for (size_t i = 0; i < result.sampled.size(); ++i) {
        auto forced = force.find(batch->rows[batch->sampling_rows[i]].sequence_id);
        if (forced == force.end() || forced->second.empty()) continue;
        result.sampled[i].token = forced->second.front();
        forced->second.erase(forced->second.begin());
      }
      scheduler->commit(result);
      scheduler->check_integrity();
    }
    take_events();
    return ids;
  }
  void take_events() {
    for (const SequenceEvent& event : scheduler->take_events()) {
      for (const SampledToken& token : event.tokens) outputs[event.sequence_id].push_back(token.token);
      last[event.sequence_id] = event;
    }
  }
  void run() {
    for (int i = 0; scheduler->has_work() && i < 100000; ++i) step();
    EXPECT_FALSE(scheduler->has_work());
  }
  bool finished(uint64_t id) const { return last.count(id) && last.at(id).finish.has_value(); }
  bool output_is_right(uint64_t id) const { return outputs.at(id) == expected_output(specs.at(id), kVocab); }

  std::unique_ptr<Scheduler> scheduler;
  std::vector<std::string> lines;
  std::map<uint64_t, SequenceSpec> specs;
  std::map<uint64_t, std::vector<int32_t>> outputs, force;
  std::map<uint64_t, SequenceEvent> last;

 private:
  ShadowDevice device_;
  uint64_t last_id_ = 0;
};

}  // namespace tokenmill::testing
