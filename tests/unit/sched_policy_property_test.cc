// The policies as pure functions (tables), and what holds whatever the policy: nobody starves, nothing idles.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

#include "sched/policy.h"
#include "unit/depth_first_order.h"
#include "unit/sched_world.h"

namespace tokenmill::testing {
namespace {

using enum SchedulePolicy;

TEST(PolicyRank, Table) {
  struct Row {
    SchedulePolicy policy;
    WaitingFacts first, second;  // first goes before second
  };
  const Row table[] = {
      {kLpm, {.matched = 7}, {.matched = 6}},
      {kLpm, {.matched = 1, .max_new_tokens = 1}, {.matched = 0, .max_new_tokens = 100}},
      {kLof, {.max_new_tokens = 8}, {.matched = 100, .max_new_tokens = 7}},
      {kPriority, {.priority = 1}, {.matched = 50, .priority = 0}},
      {kPriority, {.priority = 0}, {.priority = -1}},
      {kPriority, {.priority = INT64_MAX}, {.priority = INT64_MIN}},
  };
  for (const Row& row : table) {
    EXPECT_LT(waiting_rank(row.policy, row.first, 1), waiting_rank(row.policy, row.second, 1));
  }
  for (const SchedulePolicy policy : {kFcfs, kDfsWeight}) {
    EXPECT_EQ(waiting_rank(policy, {.id = 1, .matched = 9}, 1), waiting_rank(policy, {.id = 2, .priority = 9}, 1));
  }
  EXPECT_EQ(waiting_rank(kRandom, {.id = 5, .matched = 1}, 1), waiting_rank(kRandom, {.id = 5, .matched = 2}, 1));
  EXPECT_NE(waiting_rank(kRandom, {.id = 5}, 1), waiting_rank(kRandom, {.id = 5}, 2));
}

TEST(PolicyRank, RandomIsEven) {
  // The first of 4 places falls to each about equally often over the seeds.
  int first[4] = {};
  for (uint64_t seed = 0; seed < 4000; ++seed) {
    uint64_t best = 0;
    for (uint64_t id = 1; id < 4; ++id) {
      if (waiting_rank(kRandom, {.id = id}, seed) < waiting_rank(kRandom, {.id = best}, seed)) best = id;
    }
    ++first[best];
  }
  for (const int count : first) EXPECT_NEAR(count, 1000, 150);
}

TEST(PolicyDue, Table) {
  EXPECT_FALSE(is_due(kLpm, 10, 19, 10));
  EXPECT_TRUE(is_due(kLpm, 10, 20, 10));
  EXPECT_TRUE(is_due(kFcfs, 0, 0, 0));
  EXPECT_FALSE(is_due(kPriority, 10, 1000, 10));
}

TEST(PolicyDepthFirst, Table) {
  using Ints = std::vector<int32_t>;
  EXPECT_EQ(depth_first_order({}, {}), Ints());
  EXPECT_EQ(depth_first_order({}, Ints{-1, -1}), (Ints{0, 1}));
  //       0
  //     1   2      sequences: 0 at 1, 1 at 2, 2 at 2, 3 at the root, 4 nowhere
  EXPECT_EQ(depth_first_order(Ints{-1, 0, 0}, Ints{1, 2, 2, 0, -1}), (Ints{1, 2, 0, 3, 4}));
  // Equal weights: the smaller number.
  EXPECT_EQ(depth_first_order(Ints{2, 2, -1}, Ints{1, 0}), (Ints{1, 0}));
  EXPECT_EQ(depth_first_order(Ints{2, 2, -1}, Ints{0, 1}), (Ints{0, 1}));
  // A heavy subtree of light leaves goes before a light one: 3 and 4 under 1 against 5 under 2.
  EXPECT_EQ(depth_first_order(Ints{-1, 0, 0, 1, 1, 2}, Ints{5, 3, 4}), (Ints{1, 2, 0}));
}

TEST(PolicyDepthFirst, KeepsSubtreesTogetherAndLosesNobody) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 300; ++round) {
    const auto nodes = static_cast<int32_t>(1 + random() % 12);
    std::vector<int32_t> parents(1, -1), places;
    for (int32_t n = 1; n < nodes; ++n) parents.push_back(static_cast<int32_t>(random() % (n + 1)) - 1);
    for (size_t i = random() % 20; i > 0; --i) places.push_back(static_cast<int32_t>(random() % (nodes + 1)) - 1);
    const auto order = depth_first_order(parents, places);
    ASSERT_EQ(std::set<int32_t>(order.begin(), order.end()).size(), places.size());
    ASSERT_EQ(order.size(), places.size());
    for (int32_t top = 0; top < nodes; ++top) {  // what lies below a node is one run of the order
      const auto below = [&](int32_t sequence) {
        int32_t node = places[sequence];
        while (node >= 0 && node != top) node = parents[node];
        return node == top;
      };
      const auto first = std::find_if(order.begin(), order.end(), below);
      const auto past = std::find_if_not(first, order.end(), below);
      ASSERT_EQ(std::find_if(past, order.end(), below), order.end());
    }
  }
}

class EveryPolicy : public ::testing::TestWithParam<SchedulePolicy> {};

// Against a stream of arrivals that the policy likes better, a request is overtaken by overtake_max at most (priority:
// without a bound, so it is left out).
TEST_P(EveryPolicy, NobodyStarves) {
  if (GetParam() == kPriority) return;
  for (const int64_t overtake_max : {0, 3, 20}) {
    SchedulerOptions options = World::defaults(8, 1 << 12);
    options.max_running_requests = 2;
    options.policy = GetParam();
    options.overtake_max = overtake_max;
    World world(options);
    std::mt19937_64 random(7);
    std::vector<uint64_t> admitted;  // in order
    std::set<uint64_t> seen;
    uint64_t last = 0;
    for (int step = 0; step < 600; ++step) {
      while (world.scheduler->stats().queue < 6) {
        // Some share a long prefix that is always cached, some nothing; some want much output, some little.
        std::vector<int32_t> prompt = random() % 2 ? numbers(1, 64) : std::vector<int32_t>();
        for (int i = 0; i < 4; ++i) prompt.push_back(static_cast<int32_t>(1000 + random() % 100000));
        last = world.submit(prompt, static_cast<int64_t>(1 + random() % 6));
      }
      for (const uint64_t id : world.step()) {
        if (seen.insert(id).second) admitted.push_back(id);
      }
    }
    ASSERT_GT(admitted.size(), 150u);
    for (size_t i = 0; i < admitted.size(); ++i) {
      const auto overtaken = std::count_if(admitted.begin(), admitted.begin() + static_cast<std::ptrdiff_t>(i),
                                           [&](uint64_t earlier) { return earlier > admitted[i]; });
      // One more may leave the queue in the same scan before the due one's turn is counted.
      EXPECT_LE(overtaken, overtake_max + 2) << "sequence " << admitted[i];
    }
    for (uint64_t id = 1; id + 60 < last; ++id) EXPECT_TRUE(seen.contains(id)) << id;
  }
}

// With room for it, what waits runs: no slot stays free while a prompt could take it.
TEST_P(EveryPolicy, IsWorkConserving) {
  SchedulerOptions options = World::defaults(8, 1 << 16);
  options.max_running_requests = 8;
  options.chunked_prefill_size = 1 << 20;
  options.policy = GetParam();
  World world(options);
  std::mt19937_64 random(3);
  for (int step = 0; step < 400; ++step) {
    for (size_t i = random() % 3; i > 0; --i) {
      std::vector<int32_t> prompt(1 + random() % 30);
      for (int32_t& token : prompt) token = static_cast<int32_t>(random() % World::kVocab);
      SequenceSpec spec = world.spec(prompt, static_cast<int64_t>(1 + random() % 12));
      spec.priority = static_cast<int64_t>(random() % 3);
      world.submit(spec);
    }
    const SchedulerStats before = world.scheduler->stats();
    const size_t rows = world.step().size();
    EXPECT_EQ(rows, static_cast<size_t>(std::min<int64_t>(8, before.running + before.queue)));
  }
  world.run();
  for (const auto& [id, spec] : world.specs) EXPECT_TRUE(world.finished(id) && world.output_is_right(id));
}

INSTANTIATE_TEST_SUITE_P(All, EveryPolicy, ::testing::Values(kLpm, kFcfs, kDfsWeight, kLof, kRandom, kPriority));

}  // namespace
}  // namespace tokenmill::testing
