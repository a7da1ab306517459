// Where a sequence ends and what its sampling rows say.
#include <gtest/gtest.h>

#include "unit/sched_world.h"

namespace tokenmill::testing {
namespace {

SchedulerOptions with_bytes() {
  SchedulerOptions options = World::defaults(16, 1 << 12);
  static const std::string kLetters = "abcdefghijklmnopqrstuvwxyz";
  options.token_bytes = [](int32_t token) { return std::string_view(kLetters).substr(token % 26, 1); };
  return options;
}

TEST(Finish, StopStringOverTokensWithTrim) {
  for (bool no_trim : {false, true}) {
    World world(with_bytes());
    SequenceSpec spec = world.spec(numbers(1, 5), 10);
    spec.stop_patterns = std::make_shared<StopPatterns>(std::vector<std::string>{"cde"}, std::vector<std::string>{});
    spec.no_stop_trim = no_trim;
    uint64_t id = world.submit(spec);
    world.force[id] = {0, 1, 2, 3, 4, 5};
    for (int i = 0; i < 4; ++i) world.step();
    EXPECT_EQ(world.last[id].held_bytes, 2);  // "cd"
    world.run();
    EXPECT_EQ(world.outputs[id], (std::vector<int32_t>{0, 1, 2, 3, 4}));
    ASSERT_TRUE(world.finished(id));
    EXPECT_EQ(world.last[id].finish->type, FinishReason::Type::kStop);
    EXPECT_EQ(std::get<std::string>(world.last[id].finish->matched), "cde");
    EXPECT_EQ(world.last[id].text_end, no_trim ? 5 : 2);
  }
}

TEST(Finish, OrderIsStringThenTokenThenLength) {
  World world(with_bytes());
  SequenceSpec spec = world.spec(numbers(1, 5), 1);
  spec.stop_ids = {2};
  uint64_t token = world.submit(spec);
  SequenceSpec both = world.spec(numbers(1, 5), 1);
  both.stop_ids = {2};
  both.stop_patterns = std::make_shared<StopPatterns>(std::vector<std::string>{"c"}, std::vector<std::string>{});
  uint64_t string = world.submit(both);
  world.force[token] = world.force[string] = {2};
  world.run();
  EXPECT_EQ(std::get<int64_t>(world.last[token].finish->matched), 2);
  EXPECT_EQ(world.last[token].text_end, 0);
  EXPECT_EQ(std::get<std::string>(world.last[string].finish->matched), "c");
}

TEST(Finish, LengthAndPrefillOnly) {
  World world(World::defaults(16, 1 << 12));
  uint64_t three = world.submit(numbers(1, 5), 3), none = world.submit(numbers(1, 50), 0);
  world.run();
  EXPECT_EQ(world.last[three].finish->type, FinishReason::Type::kLength);
  EXPECT_EQ(world.last[three].finish->length, 3);
  EXPECT_EQ(world.last[none].finish->length, 0);
  EXPECT_TRUE(world.outputs[none].empty());
  uint64_t after = world.submit(numbers(1, 50), 1);
  world.run();
  EXPECT_EQ(world.last[after].cached_tokens, 49);
}

TEST(Finish, MinNewTokensBansStopIdsUntilThen) {
  World world(World::defaults(16, 1 << 12));
  SequenceSpec spec = world.spec(numbers(1, 5), 5);
  spec.min_new_tokens = 2;
  spec.stop_ids = {42, 43};
  uint64_t id = world.submit(spec);
  for (int step = 0; step < 3; ++step) {
    const Batch* batch = world.scheduler->schedule();
    ASSERT_EQ(batch->sampling.size(), 1u);
    const std::vector<int32_t>* bans = batch->sampling[0].banned_ids_more;
    EXPECT_EQ(bans != nullptr, step < 2);
    if (bans) {
      EXPECT_EQ(*bans, spec.stop_ids);
    }
    EXPECT_EQ(batch->sampling[0].position, 5u + static_cast<uint32_t>(step));
    StepResult result;
    result.step = batch->step;
    result.sampled = {sampled(step < 2 ? 7 : 43)};
    world.scheduler->commit(result);
  }
  world.take_events();
  EXPECT_EQ(std::get<int64_t>(world.last[id].finish->matched), 43);
}

TEST(Finish, BadWordSequencesBanTheirLastId) {
  World world(World::defaults(16, 1 << 12));
  SequenceSpec spec = world.spec({1, 2}, 6);
  spec.banned_ids = {99};
  spec.banned_sequences = {{5, 6, 7}, {6, 8}};
  uint64_t id = world.submit(spec);
  world.force[id] = {5, 6, 9};
  world.step();
  world.step();
  const Batch* batch = world.scheduler->schedule();
  EXPECT_EQ(*batch->sampling[0].banned_ids, std::vector<int32_t>{99});
  ASSERT_NE(batch->sampling[0].banned_ids_more, nullptr);
  EXPECT_EQ(*batch->sampling[0].banned_ids_more, (std::vector<int32_t>{7, 8}));
  world.scheduler->commit({batch->step, {sampled(9)}});
  batch = world.scheduler->schedule();
  EXPECT_EQ(batch->sampling[0].banned_ids_more, nullptr);
}

TEST(Finish, PenaltyCountsFollowTheOutput) {
  World world(World::defaults(16, 1 << 12));
  SequenceSpec spec = world.spec({9, 3, 9}, 6);
  spec.repetition_penalty = 1.5f;
  uint64_t id = world.submit(spec);
  uint64_t plain = world.submit({9, 3, 9}, 6);
  world.force[id] = {8, 4, 8};
  for (int i = 0; i < 3; ++i) world.step();
  const Batch* batch = world.scheduler->schedule();
  for (size_t i = 0; i < batch->sampling.size(); ++i) {
    const TokenCounts* counts = batch->sampling[i].counts;
    if (batch->rows[batch->sampling_rows[i]].sequence_id == plain) {
      EXPECT_EQ(counts, nullptr);
      continue;
    }
    ASSERT_NE(counts, nullptr);
    EXPECT_EQ(counts->prompt_ids, (std::vector<int32_t>{3, 9}));
    EXPECT_EQ(counts->output_ids, (std::vector<std::pair<int32_t, int32_t>>{{4, 1}, {8, 2}}));
  }
}

TEST(Finish, AbortWaitingRunningAndInFlight) {
  World world(World::defaults(16, 1 << 12));
  uint64_t running = world.submit(numbers(1, 40), 50);
  world.step();
  uint64_t waiting = world.submit(numbers(1, 40), 50);
  world.scheduler->abort(waiting, "one");
  world.take_events();
  EXPECT_EQ(world.last[waiting].finish->message, "one");
  const Batch* batch = world.scheduler->schedule();
  world.scheduler->abort(running, "two");
  world.scheduler->abort(running, "three");
  world.take_events();
  EXPECT_FALSE(world.finished(running));
  world.scheduler->commit({batch->step, {sampled(1)}});
  world.take_events();
  EXPECT_EQ(world.last[running].finish->message, "two");
  EXPECT_FALSE(world.scheduler->has_work());
  world.scheduler->abort(running, "late");
  EXPECT_TRUE(world.scheduler->take_events().empty());
  world.scheduler->check_integrity();
}

TEST(Finish, LogitsThatAreNoNumbersEndTheirSequenceOnly) {
  World world(World::defaults(16, 1 << 12));
  uint64_t bad = world.submit(numbers(1, 5), 5), good = world.submit(numbers(100, 105), 5);
  const Batch* batch = world.scheduler->schedule();
  StepResult result{batch->step, std::vector<SampledToken>(2)};
  for (size_t i = 0; i < 2; ++i) {
    bool is_bad = batch->rows[batch->sampling_rows[i]].sequence_id == bad;
    result.sampled[i].invalid = is_bad;
    result.sampled[i].token = is_bad ? -1 : 3;
  }
  world.scheduler->commit(result);
  world.run();
  EXPECT_EQ(world.last[bad].finish->type, FinishReason::Type::kAbort);
  EXPECT_EQ(world.last[good].finish->type, FinishReason::Type::kLength);
}

}  // namespace
}  // namespace tokenmill::testing
