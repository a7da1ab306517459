// Who goes first.
#include <gtest/gtest.h>

#include <set>

#include "unit/sched_world.h"

namespace tokenmill::testing {
namespace {

// One at a time, so that the order of finishing is the order of admission.
std::vector<uint64_t> order(World& world) {
  std::vector<uint64_t> ids;
  std::set<uint64_t> seen;
  while (world.scheduler->has_work()) {
    for (uint64_t id : world.step()) {
      if (seen.insert(id).second) ids.push_back(id);
    }
  }
  return ids;
}

SchedulerOptions one_at_a_time(SchedulePolicy policy) {
  SchedulerOptions options = World::defaults(8, 1 << 14);
  options.max_running_requests = 1;
  options.policy = policy;
  return options;
}

TEST(Policy, Fcfs) {
  World world(one_at_a_time(SchedulePolicy::kFcfs));
  for (int i = 0; i < 5; ++i) world.submit(numbers(1, 50 - i), 2);
  EXPECT_EQ(order(world), (std::vector<uint64_t>{1, 2, 3, 4, 5}));
}

TEST(Policy, LongestPrefixFirstAtAnyQueueLength) {
  World world(one_at_a_time(SchedulePolicy::kLpm));
  world.submit(numbers(1, 100), 1);
  world.run();
  std::vector<SequenceSpec> unit;
  for (int32_t i = 0; i < 1000; ++i) {  // ids 2..1001 share i / 10 tokens with the tree
    std::vector<int32_t> prompt = numbers(1, i / 10);
    for (int32_t more = 0; more < 5; ++more) prompt.push_back(100000 + 10 * i + more);
    unit.push_back(world.spec(prompt, 1));
  }
  world.submit_unit(unit);
  std::vector<uint64_t> ids = order(world);
  ASSERT_EQ(ids.size(), 1000u);
  for (size_t i = 0; i < ids.size(); ++i) EXPECT_EQ(ids[i], 992 - 10 * (i / 10) + i % 10);
}

// Of two prefixes that the tree holds whole, the one goes first whose match may end further on in the window layers.
TEST(Policy, LpmRanksByWhereAMatchOfTheWindowLayersMayEnd) {
  const auto cached_tokens_and_order = [](bool with_a, bool with_b) {
    SchedulerOptions options = one_at_a_time(SchedulePolicy::kLpm);
    options.window = 16;
    options.window_blocks = 8;
    options.chunked_prefill_size = 64;
    World world(options);
    const auto prompt = [](int32_t first, int32_t count, int32_t own) {
      std::vector<int32_t> tokens = numbers(first, first + count - 1);
      tokens.push_back(own);
      return tokens;
    };
    world.submit(numbers(1, 64), 1);
    world.run();
    world.submit(numbers(1001, 1056), 1);  // its window blocks drive those of the first out
    world.run();
    std::vector<SequenceSpec> unit;
    if (with_a) unit.push_back(world.spec(prompt(1, 64, 5001), 1));
    if (with_b) unit.push_back(world.spec(prompt(1001, 56, 5002), 1));
    world.submit_unit(unit);
    const std::vector<uint64_t> ids = order(world);
    return std::pair(world.last.at(ids[0]).cached_tokens, ids);
  };
  const int64_t a = cached_tokens_and_order(true, false).first, b = cached_tokens_and_order(false, true).first;
  ASSERT_LT(a, b);  // although the tree shares 64 tokens with the one and 56 with the other
  const auto [first, ids] = cached_tokens_and_order(true, true);
  EXPECT_EQ(first, b);
  EXPECT_EQ(ids, (std::vector<uint64_t>{4, 3}));
}

TEST(Policy, LpmFollowsWhatTheTreeLearns) {
  World world(one_at_a_time(SchedulePolicy::kLpm));
  uint64_t leader = world.submit(numbers(1, 64), 4);
  world.step();
  uint64_t stranger = world.submit(numbers(900, 950), 4);
  uint64_t follower = world.submit(numbers(1, 70), 4);
  EXPECT_EQ(order(world), (std::vector<uint64_t>{leader, follower, stranger}));
}

TEST(Policy, OvertakingIsBounded) {
  SchedulerOptions options = one_at_a_time(SchedulePolicy::kLpm);
  options.overtake_max = 10;
  World world(options);
  world.submit(numbers(1, 64), 2);
  world.run();
  uint64_t stranger = world.submit(numbers(900, 950), 2);
  int overtaken = 0;
  for (int i = 0; !world.last.count(stranger) && i < 100; ++i) {
    uint64_t id = world.submit(numbers(1, 70), 1);  // always a better match
    while (!world.finished(id) && !world.last.count(stranger)) world.step();
    overtaken += world.finished(id);
  }
  EXPECT_GE(overtaken, 8);
  EXPECT_LE(overtaken, 12);
}

TEST(Policy, LongestOutputFirst) {
  World world(one_at_a_time(SchedulePolicy::kLof));
  world.submit_unit({world.spec(numbers(1, 9), 2), world.spec(numbers(11, 19), 7), world.spec(numbers(21, 29), 4)});
  EXPECT_EQ(order(world), (std::vector<uint64_t>{2, 3, 1}));
}

TEST(Policy, DfsWeightTakesTheHeaviestSubtreeFirst) {
  World world(one_at_a_time(SchedulePolicy::kDfsWeight));
  world.submit(numbers(1, 64), 1);
  world.submit(numbers(1001, 1064), 1);
  world.run();
  auto branch = [&](int32_t first, int32_t last_token) {
    std::vector<int32_t> prompt = numbers(first, first + 63);
    prompt.push_back(last_token);
    return world.spec(prompt, 1);
  };
  world.submit_unit({branch(1, 7001), branch(1001, 7002), branch(1001, 7003), branch(1, 7004), branch(1001, 7005)});
  EXPECT_EQ(order(world), (std::vector<uint64_t>{4, 5, 7, 3, 6}));
}

TEST(Policy, RandomDependsOnTheSeedOnly) {
  auto ids = [](uint64_t seed) {
    SchedulerOptions options = one_at_a_time(SchedulePolicy::kRandom);
    options.random_seed = seed;
    World world(options);
    std::vector<SequenceSpec> unit;
    for (int i = 0; i < 20; ++i) unit.push_back(world.spec(numbers(100 * i, 100 * i + 5), 1));
    world.submit_unit(unit);
    return order(world);
  };
  EXPECT_EQ(ids(1), ids(1));
  EXPECT_NE(ids(1), ids(2));
}

TEST(Policy, PriorityPreempts) {
  World world(one_at_a_time(SchedulePolicy::kPriority));
  uint64_t low = world.submit(numbers(1, 20), 10);
  world.step();
  world.step();
  SequenceSpec spec = world.spec(numbers(100, 120), 3);
  spec.priority = 5;
  uint64_t high = world.submit(spec);
  EXPECT_EQ(world.step(), std::vector<uint64_t>{high});
  world.run();
  EXPECT_EQ(world.last[low].num_retractions, 1);
  EXPECT_EQ(world.scheduler->stats().preemptions, 1);
  EXPECT_TRUE(world.output_is_right(low) && world.output_is_right(high));
}

}  // namespace
}  // namespace tokenmill::testing
