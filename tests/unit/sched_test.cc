// Cache counts, chunks, groups, memory.
#include <gtest/gtest.h>

#include <chrono>
#include <iostream>

#include "base/check.h"
#include "unit/sched_world.h"

namespace tokenmill::testing {
namespace {

class CountsTest : public ::testing::TestWithParam<int32_t> {};

TEST_P(CountsTest, TheSamePromptTwice) {
  World world(World::defaults(GetParam(), 1 << 15));
  uint64_t first = world.submit(numbers(1, 100), 10);
  world.run();
  uint64_t second = world.submit(numbers(1, 100), 10);
  world.run();
  EXPECT_EQ(world.last[first].cached_tokens, 0);
  EXPECT_EQ(world.last[second].cached_tokens, 99);
  EXPECT_TRUE(world.output_is_right(first) && world.output_is_right(second));
}

TEST_P(CountsTest, TenThousandAfterTheirFirstHundred) {
  World world(World::defaults(GetParam(), 1 << 15));
  world.submit(numbers(1, 100), 5);
  world.run();
  uint64_t second = world.submit(numbers(1, 10000), 5);
  world.run();
  uint64_t third = world.submit(numbers(1, 10000), 5);
  world.run();
  EXPECT_EQ(world.last[second].cached_tokens, 100);
  EXPECT_EQ(world.last[third].cached_tokens, 9999);
  EXPECT_TRUE(world.output_is_right(second) && world.output_is_right(third));
}

TEST_P(CountsTest, WhileTheFirstStillDecodes) {
  World world(World::defaults(GetParam(), 1 << 15));
  world.submit(numbers(1, 100), 50);
  world.step();
  uint64_t second = world.submit(numbers(1, 100), 50);
  world.run();
  EXPECT_EQ(world.last[second].cached_tokens, 99);
  EXPECT_TRUE(world.output_is_right(second));
}

TEST_P(CountsTest, SamplesOfOneRequestPrefillOnce) {
  for (int32_t prompt : {5, 100}) {
    World world(World::defaults(GetParam(), 1 << 15));
    std::vector<SequenceSpec> unit;
    for (uint32_t sample = 0; sample < 4; ++sample) {
      unit.push_back(world.spec(numbers(1, prompt), 20));
      unit.back().group = 9;
      unit.back().sample_index = sample;
    }
    world.submit_unit(unit);
    EXPECT_EQ(world.step(), std::vector<uint64_t>{1});
    world.run();
    EXPECT_EQ(world.last[1].cached_tokens, 0);
    for (uint64_t id = 2; id <= 4; ++id) {
      EXPECT_EQ(world.last[id].cached_tokens, prompt - 1);
      EXPECT_TRUE(world.output_is_right(id));
    }
    EXPECT_NE(world.outputs[1], world.outputs[2]);
  }
}

TEST_P(CountsTest, FollowersOfALongPrefixWaitForTheirLeader) {
  World world(World::defaults(GetParam(), 1 << 15));  // chunks of 512
  std::vector<SequenceSpec> unit;
  for (int i = 0; i < 3; ++i) {
    std::vector<int32_t> prompt = numbers(1, 1500);
    prompt.push_back(5000 + i);
    unit.push_back(world.spec(prompt, 4));
  }
  world.submit_unit(unit);
  for (int chunk = 0; chunk < 3; ++chunk) EXPECT_EQ(world.step(), std::vector<uint64_t>{1});
  EXPECT_EQ(world.step().size(), 3u);
  world.run();
  EXPECT_EQ(world.last[1].cached_tokens, 0);
  EXPECT_EQ(world.last[2].cached_tokens, 1500);
  EXPECT_EQ(world.last[3].cached_tokens, 1500);
}

TEST_P(CountsTest, ShortSharesAreComputedByEach) {
  World world(World::defaults(GetParam(), 1 << 15));
  for (int32_t share : {31, 32}) {
    std::vector<SequenceSpec> unit;
    for (int32_t i = 0; i < 2; ++i) {
      std::vector<int32_t> prompt = numbers(10000 * share, 10000 * share + share - 1);
      for (int32_t more = 0; more < 100; ++more) prompt.push_back(i * 1000 + more);
      unit.push_back(world.spec(prompt, 4));
    }
    world.submit_unit(unit);
    EXPECT_EQ(world.step().size(), share < 32 ? 2u : 1u);
    world.run();
    EXPECT_EQ(world.last[unit[1].id].cached_tokens, share < 32 ? 0 : share);
  }
}

INSTANTIATE_TEST_SUITE_P(PageSizes, CountsTest, ::testing::Values(1, 16, 32, 64));

TEST(Scheduler, ChunksLetDecodesRideAlong) {
  World world(World::defaults(16, 1 << 14));
  uint64_t first = world.submit(numbers(1, 10), 20);
  world.step();
  uint64_t second = world.submit(numbers(5000, 6499), 3);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(world.step().size(), 2u);
  EXPECT_EQ(world.outputs[first].size(), 4u);
  EXPECT_EQ(world.outputs[second].size(), 1u);
  EXPECT_EQ(world.lines[1],
            "Prefill batch(mixed #running-req: 1). #new-seq: 1, #new-token: 512, #cached-token: 0, cache hit rate: "
            "0.00%, token usage: 0.09, #queue-req: 0");
  world.run();
  EXPECT_TRUE(world.output_is_right(first) && world.output_is_right(second));
}

// By counts: sixteen streams beside prompts of 32,000 tokens, one after the other. No stream is left out of two steps
// running, and no step computes more than one chunk.
TEST(Scheduler, DecodesNeverWaitForMoreThanTwoStepsOfOneChunk) {
  SchedulerOptions options = World::defaults(32, 1 << 18);
  options.chunked_prefill_size = 512;
  World world(options);
  std::map<uint64_t, int64_t> waited;  // steps since a stream's last row
  for (int32_t i = 0; i < 16; ++i) waited[world.submit(numbers(1000 * i, 1000 * i + 63), 400)] = 0;
  while (world.scheduler->stats().queue > 0 || world.scheduler->stats().prefill_steps < 2) world.step();
  for (int i = 0; i < 4; ++i) world.step();
  const uint64_t first = world.submit(numbers(100000, 131999), 1), second = world.submit(numbers(200000, 231999), 1);
  int64_t longest = 0, steps = 0;
  for (; !world.finished(first) || !world.finished(second); ++steps) {
    const std::vector<uint64_t> ids = world.step();
    ASSERT_LT(steps, 200);
    for (auto& [id, steps_waited] : waited) {
      steps_waited = std::count(ids.begin(), ids.end(), id) > 0 ? 0 : steps_waited + 1;
      longest = std::max(longest, steps_waited);
    }
  }
  EXPECT_GE(steps, 2 * 32000 / 512);  // so no step took more than a chunk
  EXPECT_LE(longest, 1);
}

TEST(Scheduler, RetractsAndComesBackToTheSameTokens) {
  SchedulerOptions options = World::defaults(4, 200);
  options.schedule_conservativeness = 0.01;  // admits far too many
  World world(options);
  for (int i = 0; i < 8; ++i) world.submit(numbers(100 * i, 100 * i + 9), 60);
  world.run();
  SchedulerStats stats = world.scheduler->stats();
  EXPECT_GT(stats.retractions, 0);
  EXPECT_EQ(stats.finished, 8);
  int64_t retractions = 0;
  for (auto& [id, event] : world.last) {
    EXPECT_TRUE(world.output_is_right(id));
    EXPECT_EQ(event.cached_tokens, 0);  // of the first prefill
    retractions += event.num_retractions;
  }
  EXPECT_EQ(retractions, stats.retractions);
  int64_t lines = 0;
  for (const std::string& line : world.lines)
    lines += line.starts_with("Decode out of memory happened. #retracted_reqs: ");
  EXPECT_GT(lines, 0);
  EXPECT_EQ(stats.blocks_free + stats.blocks_cached, stats.blocks_total);
}

TEST(Scheduler, RetractsTheFewestOutputsFirst) {
  SchedulerOptions options = World::defaults(1, 40);
  options.schedule_conservativeness = 0.0001;
  World world(options);
  uint64_t first = world.submit(numbers(1, 4), 30);
  for (int i = 0; i < 5; ++i) world.step();
  options.schedule_conservativeness = 0;
  uint64_t second = world.submit(numbers(100, 103), 5);
  world.run();
  EXPECT_EQ(world.last[first].num_retractions, 0);
  EXPECT_TRUE(world.output_is_right(first) && world.output_is_right(second));
}

TEST(Scheduler, EndsWhatCannotFitAlone) {
  World world(World::defaults(4, 40));
  uint64_t too_long = world.submit(numbers(1, 41), 1);
  uint64_t just_fits = world.submit(numbers(1, 40), 1);
  uint64_t grows_too_long = world.submit(numbers(500, 529), 20);
  uint64_t small = world.submit(numbers(600, 605), 5);
  world.run();
  ASSERT_TRUE(world.finished(too_long));
  EXPECT_EQ(world.last[too_long].finish->type, FinishReason::Type::kAbort);
  EXPECT_NE(world.last[too_long].finish->message.find("40"), std::string::npos);
  EXPECT_EQ(world.last[just_fits].finish->type, FinishReason::Type::kLength);
  EXPECT_EQ(world.last[grows_too_long].finish->type, FinishReason::Type::kAbort);
  EXPECT_GT(world.outputs[grows_too_long].size(), 5u);
  EXPECT_TRUE(world.output_is_right(small));
}

TEST(Scheduler, FailedStepsLeaveNothing) {
  World world(World::defaults(16, 1024));
  uint64_t id = world.submit(numbers(1, 100), 10);
  const Batch* batch = world.scheduler->schedule();
  ASSERT_NE(batch, nullptr);
  world.scheduler->fail(batch->step, "the device is gone");
  world.scheduler->check_integrity();
  world.take_events();
  EXPECT_EQ(world.last[id].finish->message, "the device is gone");
  EXPECT_EQ(world.scheduler->stats().blocks_free, 64);
  uint64_t again = world.submit(numbers(1, 100), 10);
  world.run();
  EXPECT_EQ(world.last[again].cached_tokens, 0);
  EXPECT_TRUE(world.output_is_right(again));
}

TEST(Scheduler, FlushesOnlyWhenIdle) {
  World world(World::defaults(16, 1024));
  world.submit(numbers(1, 100), 10);
  EXPECT_FALSE(world.scheduler->flush_cache());
  world.run();
  EXPECT_GT(world.scheduler->stats().blocks_cached, 0);
  EXPECT_TRUE(world.scheduler->flush_cache());
  EXPECT_EQ(world.scheduler->stats().blocks_free, 64);
}

TEST(Scheduler, MisuseIsAnInvariantError) {
  World world(World::defaults(16, 1024));
  world.submit(numbers(1, 10), 10);
  const Batch* batch = world.scheduler->schedule();
  EXPECT_THROW(world.scheduler->schedule(), InvariantError);
  StepResult result;
  result.step = batch->step + 1;
  EXPECT_THROW(world.scheduler->commit(result), InvariantError);
  EXPECT_THROW(world.scheduler->fail(batch->step + 1, ""), InvariantError);
}

double microseconds_of(const std::function<void()>& work) {
  auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count();
}

// The limits are generous for busy machines and sanitizers; the figures are printed.
TEST(SchedulerSpeed, DecodesAndALongQueue) {
  SchedulerOptions options = World::defaults(32, 1 << 20);
  options.max_running_requests = 256;
  options.chunked_prefill_size = 1 << 20;
  options.max_prefill_tokens = 1 << 20;
  Scheduler scheduler(options);
  std::vector<SequenceSpec> unit;
  for (uint64_t id = 1; id <= 256 + 4096; ++id) {
    SequenceSpec spec;
    spec.id = id;
    auto first = static_cast<int32_t>(id * 1000);
    spec.prompt = std::make_shared<std::vector<int32_t>>(numbers(first, first + (id <= 256 ? 499 : 1999)));
    spec.max_new_tokens = 2000;
    unit.push_back(std::move(spec));
  }
  scheduler.add(std::move(unit));
  double best = 1e9, total = 0;
  constexpr int kSteps = 100;
  for (int step = 0; step <= kSteps; ++step) {
    StepResult result;
    double time = microseconds_of([&] {
      const Batch* batch = scheduler.schedule();
      ASSERT_NE(batch, nullptr);
      result.step = batch->step;
      result.sampled.assign(batch->sampling.size(), sampled(7));
    });
    time += microseconds_of([&] { scheduler.commit(result); });
    scheduler.take_events();
    if (step == 0) continue;
    ASSERT_EQ(scheduler.stats().running, 256);
    best = std::min(best, time);
    total += time;
  }
  std::cout << "256 decodes, 4096 waiting: schedule + commit best " << best << " us, mean " << total / kSteps
            << " us\n";
  EXPECT_LT(best, 5000);
}

}  // namespace
}  // namespace tokenmill::testing
