// Waiting sequences on the tree: their match and their order are those of a fresh look, whatever the tree does.
#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <random>

#include "base/check.h"
#include "cache/radix_cache.h"
#include "unit/cache_tokens.h"
#include "unit/depth_first_order.h"

namespace tokenmill {
namespace {

struct Waiter {
  Tokens tokens;
  PrefixWatch watch;
  std::string name;
};

// Few different tokens, so that lists share a lot and part anywhere.
Tokens draw(std::mt19937_64& random, size_t longest) {
  Tokens tokens(1 + random() % longest);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % 12 == 0);
  return tokens;
}

void put(RadixCache& cache, const std::string& name, const Tokens& tokens) {
  PartialMatch rows;
  PrefixLease lease = cache.match(name, tokens, &rows);
  const int64_t page = cache.page_size();
  const auto blocks = (static_cast<int64_t>(tokens.size()) + page - 1) / page;
  if (cache.acquire(blocks - static_cast<int64_t>(lease.blocks.size()), lease.blocks)) {
    cache.finish(name, lease, tokens);
  } else {
    cache.abandon(lease);
  }
}

void hang(RadixCache& cache, Waiter& waiter, uint64_t order) {
  waiter.watch.tokens = waiter.tokens;
  waiter.watch.owner = &waiter;
  waiter.watch.order = waiter.watch.id = order;
  cache.watch(waiter.name, waiter.watch);
}

class Watches : public ::testing::TestWithParam<int32_t> {};

// A small pool, so that leaves come, are cut and go. check_integrity() walks from the root for every watch.
TEST_P(Watches, FollowTheTree) {
  std::mt19937_64 random(GetParam());
  RadixCache cache({.page_size = GetParam(), .num_blocks = 400 / GetParam(), .weigh_watches = true});
  std::deque<Waiter> waiters;
  for (int i = 0; i < 3000; ++i) {
    const std::string name = random() % 4 == 0 ? "other" : "";
    if (random() % 3 != 0) put(cache, name, draw(random, 90));
    if (random() % 3 == 0) {
      waiters.push_back({draw(random, 90), {}, name});
      hang(cache, waiters.back(), static_cast<uint64_t>(i));
    }
    if (waiters.size() > 60) {
      cache.unwatch(waiters.front().watch);
      waiters.pop_front();
    }
    if (random() % 50 == 0) {
      EXPECT_LE(cache.take_changed_watches().size(), waiters.size());
    }
    if (random() % 400 == 0) cache.clear();
    cache.check_integrity({});
  }
  for (Waiter& waiter : waiters) cache.unwatch(waiter.watch);
  EXPECT_TRUE(cache.take_changed_watches().empty());
  cache.check_integrity({});
}

TEST_P(Watches, AreVisitedDepthFirst) {
  std::mt19937_64 random(100 + GetParam());
  for (int round = 0; round < 60; ++round) {
    RadixCache cache({.page_size = GetParam(), .num_blocks = 4000, .weigh_watches = true});
    std::deque<Waiter> waiters;
    for (uint64_t i = 0; i < 40; ++i) {
      put(cache, "", draw(random, 60));
      waiters.push_back({draw(random, 60), {}, ""});
      hang(cache, waiters.back(), i);
    }
    std::map<uint64_t, const RadixNode*> nodes;  // by age, then from the root
    const auto key = [](const RadixNode* node) { return node->branch << 16 | static_cast<uint64_t>(node->end); };
    for (const Waiter& waiter : waiters) {
      for (const RadixNode* node = waiter.watch.node; node; node = node->parent) nodes[key(node)] = node;
    }
    std::map<const RadixNode*, int32_t> numbers;
    for (const auto& [age, node] : nodes) numbers.emplace(node, static_cast<int32_t>(numbers.size()));
    std::vector<int32_t> parents(numbers.size(), -1), places, visited;
    for (const auto& [node, number] : numbers) {
      if (node->parent) parents[static_cast<size_t>(number)] = numbers.at(node->parent);
    }
    for (const Waiter& waiter : waiters) places.push_back(numbers.at(waiter.watch.node));
    cache.visit_watches([&](PrefixWatch& watch) {
      visited.push_back(static_cast<int32_t>(watch.order));
      return true;
    });
    EXPECT_EQ(visited, testing::depth_first_order(parents, places));
    // A part of it is its begin.
    size_t count = 0;
    cache.visit_watches([&](PrefixWatch& watch) {
      EXPECT_EQ(static_cast<int32_t>(watch.order), visited[count]);
      return ++count < 7;
    });
    EXPECT_EQ(count, 7u);
    for (Waiter& waiter : waiters) cache.unwatch(waiter.watch);
  }
}

INSTANTIATE_TEST_SUITE_P(PageSizes, Watches, ::testing::Values(1, 4, 16));

// What holds a place is left only when nothing waits there any more.
TEST(WatchesBelowABranch, AreTakenToTheEnd) {
  RadixCache cache({.page_size = 4, .num_blocks = 100, .weigh_watches = true});
  put(cache, "", numbers(1, 8));
  put(cache, "", numbers(101, 108));
  std::deque<Waiter> waiters;
  for (const int32_t first : {1, 101, 101, 1, 101}) {
    waiters.push_back({numbers(first, first + 8), {}, ""});
    hang(cache, waiters.back(), waiters.size());
  }
  std::vector<uint64_t> order;
  for (size_t i = 0; i < waiters.size(); ++i) {
    PrefixWatch* first = nullptr;
    cache.visit_watches([&](PrefixWatch& watch) {
      first = &watch;
      return false;
    });
    ASSERT_TRUE(first);
    order.push_back(first->order);
    cache.unwatch(*first);
    cache.check_integrity({});
  }
  EXPECT_EQ(order, (std::vector<uint64_t>{2, 3, 5, 1, 4}));
}

// A match of a window group ends before a hole, and so does the length that ranks a waiting sequence.
TEST(WatchesOverAWindow, ReachAsFarAsAMatch) {
  std::mt19937_64 random(5);
  int shorter = 0;
  for (int round = 0; round < 200; ++round) {
    RadixCache cache({.page_size = 4, .num_blocks = 200, .window = 8, .window_blocks = 24});
    for (int i = 0; i < 12; ++i) {
      const Tokens tokens = draw(random, 40);
      PartialMatch rows;
      PrefixLease lease = cache.match("", tokens, &rows);
      const auto blocks = (static_cast<int64_t>(tokens.size()) + 3) / 4;
      ASSERT_TRUE(cache.acquire(blocks - static_cast<int64_t>(lease.blocks.size()), lease.blocks));
      ASSERT_TRUE(cache.acquire_window(blocks, lease));
      cache.copy_done(lease);
      cache.finish("", lease, tokens);
    }
    Waiter waiter{draw(random, 40), {}, ""};
    hang(cache, waiter, 0);
    const int64_t reachable = cache.reachable_tokens(waiter.watch);
    shorter += reachable < waiter.watch.matched;
    cache.unwatch(waiter.watch);
    PartialMatch rows;
    PrefixLease lease = cache.match("", waiter.tokens, &rows);
    EXPECT_EQ(reachable, lease.tree_tokens + rows.num_rows);
    cache.abandon(lease);
  }
  EXPECT_GT(shorter, 5);
}

}  // namespace
}  // namespace tokenmill
