// Time-outs, pinned prefixes and eviction policies at the scheduler.
#include <gtest/gtest.h>

#include "cache/radix_cache.h"
#include "unit/sched_world.h"

namespace tokenmill::testing {
namespace {

struct Clocked {
  explicit Clocked(SchedulerOptions options) {
    options.now_seconds = [this] { return now; };
    world = std::make_unique<World>(options);
  }
  double now = 0;
  std::unique_ptr<World> world;
};

TEST(Timeouts, WaitingEndsWhatIsNotAdmittedInTime) {
  SchedulerOptions options = World::defaults(8, 1 << 12);
  options.max_running_requests = 1;
  options.waiting_timeout_seconds = 2;
  Clocked clocked(options);
  World& world = *clocked.world;
  const uint64_t running = world.submit(numbers(1, 10), 20);
  world.step();
  clocked.now = 1;
  const uint64_t first = world.submit(numbers(20, 30), 5);
  clocked.now = 2.5;  // the running one was admitted at once: its time does not count
  const uint64_t second = world.submit(numbers(40, 50), 5);
  world.step();
  EXPECT_FALSE(world.finished(first));
  clocked.now = 3;
  world.step();
  ASSERT_TRUE(world.finished(first));
  EXPECT_EQ(world.last[first].finish->type, FinishReason::Type::kAbort);
  EXPECT_EQ(world.last[first].finish->message, "The request has waited for longer than 2 s (waiting_timeout).");
  world.run();
  EXPECT_TRUE(world.output_is_right(running) && world.output_is_right(second));
  EXPECT_EQ(world.scheduler->stats().timeouts, 1);
  EXPECT_EQ(world.scheduler->stats().aborted, 1);
}

TEST(Timeouts, RunningCountsFromTheFirstAdmission) {
  SchedulerOptions options = World::defaults(8, 1 << 12);
  options.running_timeout_seconds = 5;
  Clocked clocked(options);
  World& world = *clocked.world;
  const uint64_t slow = world.submit(numbers(1, 10), 100);
  world.step();
  clocked.now = 4;
  const uint64_t quick = world.submit(numbers(1, 12), 2);
  world.step();
  clocked.now = 5;
  world.step();
  ASSERT_TRUE(world.finished(slow));
  EXPECT_EQ(world.last[slow].finish->message, "The request has run for longer than 5 s (running_timeout).");
  EXPECT_EQ(world.outputs[slow].size(), 2u);
  world.run();
  EXPECT_TRUE(world.output_is_right(quick));
  // What it had computed stays in the cache.
  const uint64_t again = world.submit(numbers(1, 10), 1);
  world.run();
  EXPECT_EQ(world.last[again].cached_tokens, 9);
}

SequenceSpec pin_spec(World& world, std::vector<int32_t> prompt, uint64_t pin) {
  SequenceSpec spec = world.spec(std::move(prompt), 0);
  spec.pin.number = pin;
  return spec;
}

class Pins : public ::testing::TestWithParam<int32_t> {};
INSTANTIATE_TEST_SUITE_P(PageSizes, Pins, ::testing::Values(1, 16, 64));

TEST_P(Pins, SurviveEvictionAndFlush) {
  const int32_t pool = 640;
  World world(World::defaults(GetParam(), pool));
  const uint64_t pinned = world.submit(pin_spec(world, numbers(1, 100), 7));
  world.run();
  EXPECT_EQ(world.last[pinned].finish->type, FinishReason::Type::kLength);
  const int64_t held = world.scheduler->stats().blocks_pinned;
  EXPECT_EQ(held, (100 + GetParam() - 1) / GetParam());
  for (int32_t i = 1; i < 30; ++i) world.submit(numbers(1000 * i, 1000 * i + 299), 5);  // far more than the pool holds
  world.run();
  EXPECT_GT(world.scheduler->stats().evictions, 0);
  EXPECT_TRUE(world.scheduler->flush_cache());
  EXPECT_EQ(world.scheduler->stats().blocks_cached, held);
  uint64_t id = world.submit(numbers(1, 150), 2);
  world.run();
  EXPECT_EQ(world.last[id].cached_tokens, 100);
  world.scheduler->unpin(7);
  world.scheduler->unpin(7);
  world.scheduler->check_integrity();
  EXPECT_EQ(world.scheduler->stats().blocks_pinned, 0);
  EXPECT_TRUE(world.scheduler->flush_cache());
  EXPECT_EQ(world.scheduler->stats().blocks_free, world.scheduler->stats().blocks_total);
  id = world.submit(numbers(1, 150), 2);
  world.run();
  EXPECT_EQ(world.last[id].cached_tokens, 0);
}

TEST_P(Pins, OverlappingPinsCountOnceAndLetGoApart) {
  World world(World::defaults(GetParam(), 1 << 12));
  world.submit(pin_spec(world, numbers(1, 128), 1));
  world.run();
  world.submit(pin_spec(world, numbers(1, 192), 2));
  world.run();
  EXPECT_EQ(world.scheduler->stats().blocks_pinned, 192 / GetParam());
  world.scheduler->unpin(2);
  world.scheduler->check_integrity();
  EXPECT_EQ(world.scheduler->stats().blocks_pinned, 128 / GetParam());
  world.scheduler->unpin(1);
  EXPECT_EQ(world.scheduler->stats().blocks_pinned, 0);
}

// The tail that a running sequence writes cannot be held; the sequence goes on, and the whole blocks are pinned.
TEST_P(Pins, WhileAnotherGoesOnFromTheSamePrompt) {
  World world(World::defaults(GetParam(), 1 << 12));
  const uint64_t running = world.submit(numbers(1, 100), 300);
  world.step();
  world.submit(pin_spec(world, numbers(1, 100), 3));
  world.run();
  EXPECT_TRUE(world.output_is_right(running));
  EXPECT_GE(world.scheduler->stats().blocks_pinned, 100 / GetParam());
  world.scheduler->unpin(3);
  EXPECT_TRUE(world.scheduler->flush_cache());
}

TEST_P(Pins, LeaveAQuarterOfThePool) {
  World world(World::defaults(GetParam(), 640));
  const uint64_t first = world.submit(pin_spec(world, numbers(1, 448), 1));
  const uint64_t second = world.submit(pin_spec(world, numbers(1000, 1127), 2));
  world.run();
  EXPECT_EQ(world.last[first].finish->type, FinishReason::Type::kLength);
  ASSERT_EQ(world.last[second].finish->type, FinishReason::Type::kAbort);
  EXPECT_NE(world.last[second].finish->message.find("three quarters"), std::string::npos);
  const uint64_t too_long = world.submit(numbers(2000, 2399), 1);
  const uint64_t fits = world.submit(numbers(3000, 3099), 20);
  world.run();
  ASSERT_EQ(world.last[too_long].finish->type, FinishReason::Type::kAbort);
  EXPECT_NE(world.last[too_long].finish->message.find("448 of them for pinned prefixes"), std::string::npos);
  EXPECT_TRUE(world.output_is_right(fits));
}

// Each could fill the pool four times over: all of them end, each by its own abort, and nothing is lost.
TEST(Limits, RequestsThatCanNeverAllEnd) {
  SchedulerOptions options = World::defaults(32, 20000);
  options.context_length = 131072;
  Scheduler scheduler(options);
  std::vector<SequenceSpec> unit(256);
  for (size_t i = 0; i < unit.size(); ++i) {
    unit[i].id = i + 1;
    unit[i].prompt =
        std::make_shared<const std::vector<int32_t>>(std::vector<int32_t>{1, static_cast<int32_t>(i), 3, 4, 5});
    unit[i].max_new_tokens = 90000;
  }
  scheduler.add(unit);
  int64_t ended = 0;
  while (scheduler.has_work()) {
    if (const Batch* batch = scheduler.schedule()) {
      StepResult result;
      result.step = batch->step;
      for (size_t i = 0; i < batch->sampling.size(); ++i) {
        const uint64_t id = batch->rows[batch->sampling_rows[i]].sequence_id;
        result.sampled.push_back(sampled(static_cast<int32_t>((id * 31 + batch->sampling[i].position) % 100003)));
      }
      scheduler.commit(result);
      if (batch->step % 50000 == 0) scheduler.check_integrity();
    }
    for (const SequenceEvent& event : scheduler.take_events()) {
      if (!event.finish) continue;
      ++ended;
      EXPECT_EQ(event.finish->type, FinishReason::Type::kAbort);
      EXPECT_NE(event.finish->message.find("cannot grow past 20000 tokens"), std::string::npos);
    }
  }
  EXPECT_EQ(ended, 256);
  EXPECT_GT(scheduler.stats().retractions, 0);
  EXPECT_TRUE(scheduler.flush_cache());
  EXPECT_EQ(scheduler.stats().blocks_free, 625);
}

// Three prefixes fill the pool: A is the oldest and matched most, B was matched last, C never.
TEST(Eviction, EachPolicyTakesItsOwnVictim) {
  struct Row {
    EvictionPolicy policy;
    int64_t kept_a, kept_b, kept_c;
  };
  const Row table[] = {{EvictionPolicy::kLru, 0, 64, 64},    // A was used longest ago
                       {EvictionPolicy::kLfu, 64, 64, 0},    // C has no match
                       {EvictionPolicy::kFifo, 0, 64, 64}};  // A came first
  for (const Row& row : table) {
    RadixCache cache({.page_size = 16, .num_blocks = 12, .enabled = true, .eviction = row.policy});
    const auto use = [&](const std::vector<int32_t>& tokens) {
      PartialMatch rows;
      PrefixLease lease = cache.match("", tokens, &rows);
      const int64_t missing = static_cast<int64_t>(tokens.size()) / 16 - static_cast<int64_t>(lease.blocks.size());
      ASSERT_TRUE(cache.acquire(missing, lease.blocks));
      cache.finish("", lease, tokens);
    };
    const auto a = numbers(1, 64), b = numbers(1001, 1064), c = numbers(2001, 2064);
    use(a);
    use(b);
    use(a);
    use(a);
    use(c);
    use(b);
    std::vector<int32_t> more;
    ASSERT_TRUE(cache.acquire(4, more));
    const auto kept = [&](const std::vector<int32_t>& tokens) {
      PartialMatch rows;
      PrefixLease lease = cache.match("", tokens, &rows);
      const int64_t matched = lease.tree_tokens + rows.num_rows;
      cache.abandon(lease);
      return matched;
    };
    EXPECT_EQ(kept(a), row.kept_a);
    EXPECT_EQ(kept(b), row.kept_b);
    EXPECT_EQ(kept(c), row.kept_c);
  }
}

TEST(Eviction, FifoIsByEntryNotByUse) {
  RadixCache cache({.page_size = 1, .num_blocks = 3, .enabled = true, .eviction = EvictionPolicy::kFifo});
  for (int32_t token = 1; token <= 3; ++token) {
    PrefixLease lease;
    ASSERT_TRUE(cache.acquire(1, lease.blocks));
    cache.finish("", lease, numbers(token, token));
  }
  PartialMatch rows;
  PrefixLease lease = cache.match("", numbers(1, 1), &rows);
  cache.abandon(lease);
  std::vector<int32_t> more;
  ASSERT_TRUE(cache.acquire(1, more));
  lease = cache.match("", numbers(1, 1), &rows);
  EXPECT_EQ(lease.tree_tokens, 0);
  cache.abandon(lease);
  lease = cache.match("", numbers(2, 2), &rows);
  EXPECT_EQ(lease.tree_tokens, 1);
  cache.abandon(lease);
}

}  // namespace
}  // namespace tokenmill::testing
