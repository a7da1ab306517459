// Steps planned before the one before them is committed: what may be planned so, and what a row computed in vain
// leaves.
#include <gtest/gtest.h>

#include <optional>

#include "unit/sched_world.h"

namespace tokenmill::testing {
namespace {

// Two steps in flight at most, as a device that works beside the host has them.
class Ahead : public ::testing::Test {
 protected:
  void make(SchedulerOptions options) {
    options.now_seconds = [this] { return seconds; };
    device.emplace(options.num_blocks, options.page_size, World::kVocab);
    scheduler = std::make_unique<Scheduler>(options);
  }
  uint64_t submit(std::vector<int32_t> prompt, int64_t max_new_tokens, std::vector<int32_t> stop_ids = {}) {
    SequenceSpec spec;
    spec.prompt = std::make_shared<std::vector<int32_t>>(std::move(prompt));
    spec.max_new_tokens = max_new_tokens;
    spec.stop_ids = std::move(stop_ids);
    return submit(std::move(spec));
  }
  uint64_t submit(SequenceSpec spec) {
    spec.id = ++last_id;
    specs[spec.id] = spec;
    scheduler->add({std::move(spec)});
    return last_id;
  }
  const Batch* launch(const Batch* batch) {
    scheduler->check_integrity();
    if (batch != nullptr) device->launch(*batch);
    return batch;
  }
  const Batch* schedule() { return launch(scheduler->schedule()); }
  const Batch* ahead() { return launch(scheduler->schedule_ahead()); }
  StepResult sample(const Batch& batch) { return device->sample(batch); }
  void commit(const StepResult& result) {
    scheduler->commit(result);
    scheduler->check_integrity();
    for (const SequenceEvent& event : scheduler->take_events()) {
      for (const SampledToken& token : event.tokens) outputs[event.sequence_id].push_back(token.token);
      last[event.sequence_id] = event;
    }
  }
  void fail(const Batch& batch) {
    device->spoil(batch);
    scheduler->fail(batch.step, "the device failed");
    scheduler->check_integrity();
    for (const SequenceEvent& event : scheduler->take_events()) last[event.sequence_id] = event;
  }
  // Commits the batch. The one after it, planned ahead where that goes.
  struct Next {
    const Batch* batch;
    bool is_ahead;
  };
  Next turn(const Batch* batch) {
    const StepResult result = sample(*batch);
    const Batch* next = ahead();
    commit(result);
    return {next != nullptr ? next : schedule(), next != nullptr};
  }
  // To the end. How many steps were planned ahead.
  int64_t run() {
    int64_t num_ahead = 0;
    for (Next next{schedule(), false}; next.batch != nullptr; num_ahead += next.is_ahead) next = turn(next.batch);
    EXPECT_FALSE(scheduler->has_work());
    return num_ahead;
  }
  std::vector<int32_t> expected(uint64_t id) const { return expected_output(specs.at(id), World::kVocab); }
  bool finished(uint64_t id) const { return last.contains(id) && last.at(id).finish.has_value(); }
  // A stop id that ends the sequence after `tokens` tokens.
  static std::vector<int32_t> stop_after(const std::vector<int32_t>& prompt, size_t tokens) {
    SequenceSpec spec;
    spec.prompt = std::make_shared<std::vector<int32_t>>(prompt);
    spec.max_new_tokens = static_cast<int64_t>(tokens);
    return {expected_output(spec, World::kVocab).back()};
  }

  double seconds = 0;
  std::optional<ShadowDevice> device;
  std::unique_ptr<Scheduler> scheduler;
  std::map<uint64_t, SequenceSpec> specs;
  std::map<uint64_t, std::vector<int32_t>> outputs;
  std::map<uint64_t, SequenceEvent> last;
  uint64_t last_id = 0;
};

TEST_F(Ahead, AllStepsButTheFirstOfAnEvenBatch) {
  make(World::defaults(16, 4096));
  const uint64_t a = submit(numbers(1, 20), 30), b = submit(numbers(100, 150), 30);
  EXPECT_EQ(run(), 29);
  EXPECT_EQ(outputs[a], expected(a));
  EXPECT_EQ(outputs[b], expected(b));
  EXPECT_EQ(scheduler->stats().steps, 30);  // ends by length are known: no row was wasted
}

TEST_F(Ahead, TheTokenComesFromTheSlotOfTheStepBefore) {
  make(World::defaults(16, 4096));
  submit(numbers(1, 20), 1);
  submit(numbers(100, 120), 3);
  const Batch* first = schedule();
  ASSERT_EQ(first->sampling.size(), 2u);
  const StepResult result = sample(*first);
  const Batch* second = ahead();
  ASSERT_NE(second, nullptr);
  ASSERT_EQ(second->rows.size(), 1u);  // the other one has its only token
  ASSERT_EQ(second->slot_tokens.size(), 1u);
  EXPECT_EQ(second->slot_tokens[0].token_index, 0);
  EXPECT_EQ(second->slot_tokens[0].slot, 1);
  EXPECT_EQ(second->positions[0], 21);
  commit(result);
  EXPECT_EQ(second->sampling[0].position, 22u);
  const StepResult next = sample(*second);
  EXPECT_EQ(ahead()->slot_tokens[0].slot, 0);
  commit(next);
}

TEST_F(Ahead, ARowInVainHoldsItsBlocksUntilItsOwnCommit) {
  make(World::defaults(16, 128));
  const std::vector<int32_t> prompt = numbers(1, 20);
  const uint64_t a = submit(prompt, 30, stop_after(prompt, 2)), b = submit(numbers(100, 110), 5);
  const Batch* batch = schedule();
  for (int i = 0; i < 2; ++i) {
    const StepResult result = sample(*batch);
    const Batch* next = ahead();
    ASSERT_NE(next, nullptr);
    commit(result);
    batch = next;
  }
  ASSERT_TRUE(finished(a));
  EXPECT_EQ(last[a].finish->type, FinishReason::Type::kStop);
  EXPECT_EQ(outputs[a], expected(a));
  EXPECT_EQ(batch->rows.size(), 2u);
  EXPECT_EQ(scheduler->stats().running, 1);
  EXPECT_EQ(scheduler->stats().blocks_free, 5);  // of 8: a still holds two
  scheduler->abort(a, "too late");
  commit(sample(*batch));
  EXPECT_EQ(outputs[a], expected(a));  // the third token is nobody's
  batch = schedule();
  EXPECT_EQ(batch->rows.size(), 1u);
  commit(sample(*batch));
  run();
  EXPECT_EQ(outputs[b], expected(b));
}

// The K/V of the token that ended it was that row's to write.
TEST_F(Ahead, WhatARowInVainWasToWriteIsNotInTheCache) {
  for (const bool fails : {false, true}) {
    make(World::defaults(16, 4096));
    const std::vector<int32_t> prompt = numbers(1, 20);
    const uint64_t a = submit(prompt, 30, stop_after(prompt, 12));  // 32 tokens: whole blocks
    const Batch* batch = schedule();
    while (!finished(a)) {
      const StepResult result = sample(*batch);
      const Batch* next = ahead();
      commit(result);
      batch = next;
    }
    ASSERT_NE(batch, nullptr);
    if (fails) {
      fail(*batch);
    } else {
      commit(sample(*batch));
    }
    EXPECT_EQ(last[a].finish->type, FinishReason::Type::kStop);
    EXPECT_FALSE(scheduler->has_work());
    std::vector<int32_t> more = prompt;
    more.insert(more.end(), outputs[a].begin(), outputs[a].end());
    more.push_back(7);
    const uint64_t b = submit(more, 5);
    run();
    EXPECT_EQ(last[b].cached_tokens, 31);
    EXPECT_EQ(outputs[b], expected(b));
    outputs.clear();
    last.clear();
  }
}

TEST_F(Ahead, NothingIsPlannedAheadOfAPromptInPieces) {
  SchedulerOptions options = World::defaults(16, 4096);
  options.chunked_prefill_size = 32;
  make(options);
  submit(numbers(1, 20), 10);
  commit(sample(*schedule()));
  submit(numbers(100, 200), 10);
  const Batch* batch = schedule();
  ASSERT_EQ(batch->rows.size(), 2u);
  EXPECT_EQ(scheduler->schedule_ahead(), nullptr);
  commit(sample(*batch));
  run();
}

TEST_F(Ahead, WhoComesIsAdmittedByTheNextStepButOne) {
  make(World::defaults(16, 4096));
  submit(numbers(1, 20), 40);
  commit(sample(*schedule()));
  const Batch* batch = schedule();
  const uint64_t b = submit(numbers(100, 120), 10);
  const StepResult result = sample(*batch);
  EXPECT_EQ(scheduler->schedule_ahead(), nullptr);
  commit(result);
  batch = schedule();
  EXPECT_EQ(batch->rows.size(), 2u);
  commit(sample(*batch));
  run();
  EXPECT_EQ(outputs[b], expected(b));
}

// Who waits for a place stops nobody from going on, and gets the place that comes free.
TEST_F(Ahead, WhoFindsNoPlaceIsLookedAtWhenThereMayBeOne) {
  SchedulerOptions options = World::defaults(16, 4096);
  options.max_running_requests = 2;
  make(options);
  const uint64_t a = submit(numbers(1, 20), 8);
  submit(numbers(50, 70), 40);
  commit(sample(*schedule()));
  const uint64_t c = submit(numbers(100, 120), 10);
  int64_t planned = 0, since_end = 0;
  const Batch* batch = schedule();
  while (last[c].completion_tokens == 0) {
    const Next next = turn(batch);
    planned += next.is_ahead;
    since_end += finished(a);
    batch = next.batch;
  }
  EXPECT_GE(planned, 6);
  EXPECT_LE(since_end, 3);
  commit(sample(*batch));
  run();
  EXPECT_EQ(outputs[c], expected(c));
}

// An end by length is known before: the place is taken in the very next step.
TEST_F(Ahead, APlaceThatSurelyComesFreeIsNotLeftEmpty) {
  SchedulerOptions options = World::defaults(16, 4096);
  options.max_running_requests = 2;
  make(options);
  const uint64_t a = submit(numbers(1, 20), 3);
  submit(numbers(50, 70), 9);
  submit(numbers(100, 120), 4);
  const Batch* batch = schedule();
  for (int step = 2; step <= 7; ++step) {
    const Next next = turn(batch);
    EXPECT_EQ(next.is_ahead, step != 2 && step != 4) << step;  // after the prompts, and after a's last token
    batch = next.batch;
    EXPECT_EQ(batch->rows.size(), 2u) << step;
  }
  EXPECT_TRUE(finished(a));
  commit(sample(*batch));
  run();
}

TEST_F(Ahead, NobodyIsRetractedForIt) {
  SchedulerOptions options = World::defaults(16, 64);
  options.schedule_conservativeness = 0.02;
  make(options);
  const uint64_t a = submit(numbers(1, 30), 20), b = submit(numbers(100, 115), 16);
  run();
  EXPECT_GT(scheduler->stats().retractions, 0);
  EXPECT_EQ(outputs[a], expected(a));
  EXPECT_EQ(outputs[b], expected(b));
}

TEST_F(Ahead, ADeadlineIsMet) {
  SchedulerOptions options = World::defaults(16, 4096);
  options.running_timeout_seconds = 5;
  make(options);
  const uint64_t a = submit(numbers(1, 20), 100);
  const Batch* batch = schedule();
  for (seconds = 1; !finished(a); ++seconds) {
    ASSERT_LT(seconds, 20);
    batch = turn(batch).batch;
    for (const SequenceEvent& event : scheduler->take_events()) last[event.sequence_id] = event;
  }
  EXPECT_LE(seconds, 7);
  EXPECT_EQ(last[a].finish->type, FinishReason::Type::kAbort);
}

TEST_F(Ahead, AnAbortTakesEffectAtTheFirstCommit) {
  make(World::defaults(16, 4096));
  const uint64_t a = submit(numbers(1, 20), 30), b = submit(numbers(100, 110), 6);
  const Batch* first = schedule();
  const StepResult result = sample(*first);
  const Batch* second = ahead();
  ASSERT_NE(second, nullptr);
  scheduler->abort(a, "enough");
  commit(result);
  ASSERT_TRUE(finished(a));
  EXPECT_EQ(last[a].finish->message, "enough");
  EXPECT_TRUE(outputs[a].empty());
  commit(sample(*second));
  run();
  EXPECT_EQ(outputs[b], expected(b));
}

// Bans and penalties are those of the sequence with the token that the plan did not know.
TEST_F(Ahead, SamplingSeesAllTokensBefore) {
  make(World::defaults(16, 4096));
  SequenceSpec spec;
  spec.prompt = std::make_shared<std::vector<int32_t>>(numbers(1, 20));
  spec.max_new_tokens = 20;
  spec.presence_penalty = 0.5f;
  spec.seed = 3;
  const auto plain = expected_output(spec, World::kVocab);
  spec.banned_sequences = {{plain[4], plain[5]}};
  spec.stop_ids = {plain[2]};
  spec.min_new_tokens = 10;
  const uint64_t a = submit(spec);
  EXPECT_GT(run(), 10);
  EXPECT_EQ(outputs[a], expected(a));
  EXPECT_NE(outputs[a], plain);
}

}  // namespace
}  // namespace tokenmill::testing
