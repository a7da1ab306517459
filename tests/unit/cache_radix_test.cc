// The radix cache against a naive model (a list of token strings), and its corner cases one by one.
#include <gtest/gtest.h>

#include <random>

#include "base/check.h"
#include "cache/radix_cache.h"
#include "unit/cache_tokens.h"

namespace tokenmill {
namespace {

int64_t blocks_for(int64_t tokens, int64_t page) { return (tokens + page - 1) / page; }

int64_t matched(RadixCache& cache, const Tokens& tokens, const std::string& name = "") {
  PartialMatch rows;
  PrefixLease lease = cache.match(name, tokens, &rows);
  int64_t total = lease.tree_tokens + rows.num_rows;
  cache.abandon(lease);
  return total;
}

// As a whole request: match, acquire, enter, commit, finish.
void put(RadixCache& cache, const Tokens& tokens, const std::string& name = "") {
  PartialMatch rows;
  PrefixLease lease = cache.match(name, tokens, &rows);
  int64_t missing =
      blocks_for(static_cast<int64_t>(tokens.size()), cache.page_size()) - static_cast<int64_t>(lease.blocks.size());
  ASSERT_TRUE(cache.acquire(missing, lease.blocks));
  cache.enter(name, lease, tokens, 1);
  cache.commit(1);
  cache.copy_done(lease);
  cache.settle(lease);
  cache.finish(name, lease, tokens);
}

class RadixCacheTest : public ::testing::TestWithParam<int32_t> {};

TEST_P(RadixCacheTest, MatchesToTheToken) {
  RadixCache cache({.page_size = GetParam(), .num_blocks = 1000});
  put(cache, numbers(1, 100));
  for (int32_t n : {0, 1, 15, 16, 17, 63, 64, 65, 99, 100}) {
    Tokens query = numbers(1, n);
    EXPECT_EQ(matched(cache, query), n);
    query.push_back(-5);
    EXPECT_EQ(matched(cache, query), n);
  }
  EXPECT_EQ(matched(cache, numbers(1, 150)), 100);
  EXPECT_EQ(matched(cache, numbers(2, 50)), 0);
  EXPECT_EQ(matched(cache, numbers(1, 100), "other"), 0);
  cache.check_integrity({});
}

TEST_P(RadixCacheTest, UncommittedIsNotMatchedAndFailureTakesItOut) {
  RadixCache cache({.page_size = GetParam(), .num_blocks = 1000});
  put(cache, numbers(1, 40));
  PartialMatch rows;
  PrefixLease lease = cache.match("", numbers(1, 70), &rows);
  cache.acquire(blocks_for(70, GetParam()) - static_cast<int64_t>(lease.blocks.size()), lease.blocks);
  cache.enter("", lease, numbers(1, 70), 7);
  EXPECT_EQ(matched(cache, numbers(1, 70)), 40);
  const PrefixLease* leases[] = {&lease};
  cache.check_integrity(leases);

  PrefixWatch watch;
  Tokens waiting = numbers(1, 70);
  watch.tokens = waiting;
  cache.watch("", watch);
  EXPECT_EQ(watch.matched, 70);
  EXPECT_EQ(cache.uncommitted_tokens(watch), 30);

  cache.abandon(lease);
  cache.fail(7);
  cache.check_integrity({});
  EXPECT_EQ(watch.matched, 40);
  EXPECT_EQ(cache.uncommitted_tokens(watch), 0);
  EXPECT_EQ(cache.take_changed_watches().size(), 1u);
  cache.unwatch(watch);
  EXPECT_EQ(matched(cache, numbers(1, 70)), 40);
}

TEST_P(RadixCacheTest, DuplicatesAreFreed) {
  const int32_t page = GetParam();
  RadixCache cache({.page_size = page, .num_blocks = 1000});
  // Two compute the same 128 tokens in one step.
  PrefixLease a, b;
  cache.acquire(blocks_for(128, page), a.blocks);
  cache.acquire(blocks_for(128, page), b.blocks);
  cache.enter("", a, numbers(1, 128), 3);
  cache.enter("", b, numbers(1, 128), 3);
  EXPECT_NE(a.blocks, b.blocks);
  const PrefixLease* leases[] = {&a, &b};
  cache.check_integrity(leases);
  cache.commit(3);
  cache.settle(a);
  cache.settle(b);
  EXPECT_EQ(a.blocks, b.blocks);
  EXPECT_EQ(cache.free_blocks(), 1000 - blocks_for(128, page));
  EXPECT_EQ(cache.locked_tokens(), 128);
  cache.check_integrity(leases);
  cache.finish("", a, numbers(1, 128));
  cache.finish("", b, numbers(1, 128));
  EXPECT_EQ(cache.locked_tokens(), 0);
  cache.clear();
  EXPECT_EQ(cache.free_blocks(), 1000);
}

TEST_P(RadixCacheTest, EvictsLeastRecentlyUsedLeavesFirstAndNeverWhatIsLeased) {
  const int32_t page = GetParam();
  RadixCache cache({.page_size = page, .num_blocks = static_cast<int32_t>(3 * 64 / page)});
  put(cache, numbers(1000, 1063));
  put(cache, numbers(2000, 2063));
  put(cache, numbers(3000, 3063));
  EXPECT_EQ(cache.free_blocks(), 0);
  EXPECT_EQ(matched(cache, numbers(1000, 1063)), 64);  // 2000 is now the oldest
  PartialMatch rows;
  PrefixLease lease = cache.match("", numbers(3000, 3063), &rows);
  EXPECT_EQ(cache.available_blocks(), 2 * 64 / page);
  std::vector<int32_t> blocks;
  EXPECT_FALSE(cache.acquire(2 * 64 / page + 1, blocks));
  EXPECT_EQ(cache.evictions(), 0);
  EXPECT_TRUE(cache.acquire(1, blocks));
  EXPECT_EQ(cache.evictions(), 1);
  EXPECT_EQ(matched(cache, numbers(2000, 2063)), 64 - page);
  EXPECT_TRUE(cache.acquire(2 * 64 / page - 1, blocks));
  EXPECT_EQ(matched(cache, numbers(1000, 1063)), 0);
  EXPECT_EQ(matched(cache, numbers(3000, 3063)), 64);
  EXPECT_EQ(cache.available_blocks(), 0);
  cache.finish("", lease, numbers(3000, 3063));
  EXPECT_EQ(cache.available_blocks(), 64 / page);
}

TEST_P(RadixCacheTest, DisabledHoldsNothing) {
  RadixCache cache({.page_size = GetParam(), .num_blocks = 100, .enabled = false});
  put(cache, numbers(1, 64));
  EXPECT_EQ(cache.free_blocks(), 100);
  EXPECT_EQ(matched(cache, numbers(1, 64)), 0);
  cache.check_integrity({});
}

// Random requests in random phases; the tree must match what the longest common prefix over all committed strings says.
TEST_P(RadixCacheTest, AgreesWithAListOfStrings) {
  struct Request {
    Tokens tokens;
    int64_t done = 0;
    PrefixLease lease;
  };
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    std::mt19937_64 random(seed);
    auto draw = [&](int64_t low, int64_t high) {
      return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
    };
    RadixCache cache({.page_size = GetParam(), .num_blocks = 8000});
    std::vector<Tokens> model;
    const bool exact = seed % 2 == 0;  // requests come one chunk at a time, no step fails
    std::vector<std::unique_ptr<Request>> live;
    auto longest = [&](const Tokens& tokens) {
      int64_t best = 0;
      for (const Tokens& known : model) best = std::max(best, common_prefix(known, tokens));
      return best;
    };
    auto check = [&] {
      std::vector<const PrefixLease*> leases;
      for (const auto& request : live) leases.push_back(&request->lease);
      cache.check_integrity(leases);
    };
    for (uint64_t step = 1; step <= 40; ++step) {
      // One step, as the scheduler makes it: some requests go on, then some begin; all commit or all fail.
      std::vector<Request*> in_step;
      auto go_on = [&](Request& request) {
        auto total = static_cast<int64_t>(request.tokens.size());
        if (request.done >= total || draw(0, 3) == 0) return;
        request.done = exact ? total : draw(request.done + 1, total);
        cache.enter("", request.lease, TokenSpan(request.tokens).first(request.done), step);
        in_step.push_back(&request);
      };
      for (auto& request : live) go_on(*request);
      for (int64_t n = draw(0, 3); n > 0; --n) {
        auto request = std::make_unique<Request>();
        if (!model.empty() && draw(0, 2)) request->tokens = model[draw(0, static_cast<int64_t>(model.size()) - 1)];
        request->tokens.resize(draw(0, static_cast<int64_t>(request->tokens.size())));
        for (int64_t more = draw(1, 80); more > 0; --more) {
          request->tokens.push_back(static_cast<int32_t>(draw(0, 1 + static_cast<int64_t>(seed % 3))));
        }
        PartialMatch rows;
        request->lease = cache.match("", request->tokens, &rows);
        if (GetParam() == 1) {
          ASSERT_EQ(rows.num_rows, 0);
        }
        request->done = request->lease.tree_tokens + rows.num_rows;
        const int64_t expected = longest(request->tokens);
        // A step that fails, or a request that goes on in this step, takes the rows of a partly filled block along.
        if (exact || GetParam() == 1) {
          ASSERT_EQ(request->done, expected) << "seed " << seed << " step " << step;
        } else {
          ASSERT_LE(request->done, expected);
          ASSERT_GE(request->done, expected / GetParam() * GetParam());
        }
        int64_t missing = blocks_for(static_cast<int64_t>(request->tokens.size()), GetParam()) -
                          static_cast<int64_t>(request->lease.blocks.size());
        ASSERT_TRUE(cache.acquire(missing, request->lease.blocks));
        live.push_back(std::move(request));
        go_on(*live.back());
      }
      check();
      bool fails = !exact && draw(0, 9) == 0;
      if (fails) {
        for (Request* request : in_step) cache.abandon(request->lease);
        cache.fail(step);
        std::erase_if(live, [&](const auto& request) {
          return std::find(in_step.begin(), in_step.end(), request.get()) != in_step.end();
        });
      } else {
        cache.commit(step);
        for (Request* request : in_step) {
          cache.settle(request->lease);
          model.push_back(Tokens(request->tokens.begin(), request->tokens.begin() + request->done));
        }
      }
      for (auto& request : live) cache.copy_done(request->lease);
      check();
      for (auto& request : live) {
        if (request->done < static_cast<int64_t>(request->tokens.size()) || draw(0, 1)) continue;
        cache.finish("", request->lease, request->tokens);
        request.reset();
      }
      std::erase(live, nullptr);
      check();
    }
    for (auto& request : live) cache.abandon(request->lease);
    live.clear();
    check();
    ASSERT_EQ(cache.available_blocks(), cache.total_blocks());
  }
}

INSTANTIATE_TEST_SUITE_P(PageSizes, RadixCacheTest, ::testing::Values(1, 2, 16, 64));

}  // namespace
}  // namespace tokenmill
