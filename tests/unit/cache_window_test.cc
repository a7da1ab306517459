// Where a match ends when layers with a window have given blocks up, by tables; and what fills the holes again.
#include <gtest/gtest.h>

#include "base/check.h"
#include "cache/radix_cache.h"
#include "unit/cache_tokens.h"

namespace tokenmill {
namespace {

int64_t matched(RadixCache& cache, const Tokens& tokens, std::vector<const PrefixLease*> leases = {}) {
  PartialMatch rows;
  PrefixLease lease = cache.match("", tokens, &rows);
  leases.push_back(&lease);
  cache.check_integrity(leases);
  const int64_t total = lease.tree_tokens + rows.num_rows;
  EXPECT_EQ(rows.num_rows > 0, rows.window_block >= 0);
  // What the next token sees is held.
  for (int64_t p = std::max<int64_t>(0, total - cache.window() + 1); p < lease.tree_tokens; ++p) {
    EXPECT_GE(lease.window_blocks[static_cast<size_t>(p / cache.page_size())], 0) << p << " of " << total;
  }
  cache.abandon(lease);
  return total;
}

// As a whole request in one chunk; keeps what its window layers still hold at `trim_at` tokens.
void put(RadixCache& cache, const Tokens& tokens, int64_t trim_at = 0) {
  static uint64_t step = 0;
  ++step;
  PartialMatch rows;
  PrefixLease lease = cache.match("", tokens, &rows);
  const int64_t end = (static_cast<int64_t>(tokens.size()) + cache.page_size() - 1) / cache.page_size();
  ASSERT_TRUE(cache.acquire(end - static_cast<int64_t>(lease.blocks.size()), lease.blocks));
  ASSERT_TRUE(cache.acquire_window(end, lease));
  if (trim_at > 0) {  // as a decoded tail: it enters the tree only at the end
    cache.copy_done(lease);
    cache.trim_window(lease, trim_at);
  } else {
    cache.enter("", lease, tokens, step);
    cache.commit(step);
    cache.copy_done(lease);
    cache.settle(lease);
  }
  cache.finish("", lease, tokens);
  cache.check_integrity({});
}

// Takes every free window block and `evicted` of the tree's.
void evict_window(RadixCache& cache, int64_t evicted) {
  PrefixLease lease;
  const int64_t wanted = cache.window_free_blocks() + evicted;
  ASSERT_TRUE(cache.acquire_window(wanted, lease));
  cache.abandon(lease);
  cache.check_integrity({});
}

TEST(WindowCache, AllHeldMatchesToTheToken) {
  RadixCache cache({.page_size = 4, .num_blocks = 100, .window = 8, .window_blocks = 40});
  put(cache, numbers(1, 40));
  for (int32_t n = 0; n <= 40; ++n) EXPECT_EQ(matched(cache, numbers(1, n)), n);
}

TEST(WindowCache, AMatchNeedsItsLastWindowTokens) {
  struct Row {
    int64_t evicted;  // blocks of 4 tokens, from the front
    int32_t query;
    int64_t matched;
  };
  const Row rows[] = {{0, 17, 17}, {1, 4, 0},   {1, 11, 0}, {1, 12, 12}, {1, 13, 13}, {3, 19, 0},
                      {3, 20, 20}, {3, 39, 39}, {8, 39, 0}, {8, 40, 40}, {9, 40, 0},  {10, 40, 0}};
  for (const Row& row : rows) {
    RadixCache cache({.page_size = 4, .num_blocks = 100, .window = 8, .window_blocks = 40});
    put(cache, numbers(1, 40));
    evict_window(cache, row.evicted);
    EXPECT_EQ(matched(cache, numbers(1, row.query)), row.matched) << row.evicted << " evicted, query " << row.query;
  }
}

// The shorter, older prefix goes first; then the longer one matches only from a window behind its begin on.
TEST(WindowCache, TheLeastRecentlyUsedGoesFirst) {
  RadixCache cache({.page_size = 4, .num_blocks = 100, .window = 8, .window_blocks = 40});
  put(cache, numbers(1, 16));
  put(cache, numbers(1, 40));
  evict_window(cache, 4);
  for (const auto& [query, expected] : {std::pair<int32_t, int64_t>{16, 0}, {23, 0}, {24, 24}, {40, 40}}) {
    EXPECT_EQ(matched(cache, numbers(1, query)), expected) << query;
  }
  EXPECT_EQ(cache.window_evictions(), 4);
  EXPECT_EQ(cache.evictions(), 0);
  put(cache, numbers(1, 16));  // computed again: its window blocks fill the holes, its other blocks go
  EXPECT_EQ(cache.cached_blocks(), 10);
  for (int32_t n = 0; n <= 40; ++n) EXPECT_EQ(matched(cache, numbers(1, n)), n);
}

TEST(WindowCache, WhatADecodeLeftBehindIsFree) {
  RadixCache cache({.page_size = 4, .num_blocks = 100, .window = 8, .window_blocks = 40});
  put(cache, numbers(1, 40), 40);
  EXPECT_EQ(cache.window_cached_blocks(), 2);
  EXPECT_EQ(cache.window_free_blocks(), 38);
  EXPECT_EQ(matched(cache, numbers(1, 40)), 40);
  EXPECT_EQ(matched(cache, numbers(1, 39)), 0);
}

// A leaf without any window block can be the end of no match, so its other blocks go with the last of them.
TEST(WindowCache, ALeafWithoutWindowBlocksGoesWhole) {
  RadixCache cache({.page_size = 4, .num_blocks = 100, .window = 8, .window_blocks = 40});
  put(cache, numbers(1, 40));
  evict_window(cache, 10);
  EXPECT_EQ(cache.cached_blocks(), 0);
  EXPECT_EQ(cache.free_blocks(), 100);
}

// Past a hole a sibling's rows may still be there: the match goes as far as these.
TEST(WindowCache, ASiblingsRowsGoPastAHole) {
  RadixCache cache({.page_size = 4, .num_blocks = 100, .window = 2, .window_blocks = 40});
  put(cache, numbers(1, 4));
  put(cache, numbers(1, 8));
  Tokens sibling = numbers(1, 7);
  sibling.push_back(99);
  put(cache, sibling);
  EXPECT_EQ(matched(cache, numbers(1, 4)), 4);  // so that the second block of 1 to 8 is the oldest
  EXPECT_EQ(matched(cache, sibling), 8);
  evict_window(cache, 1);
  EXPECT_EQ(matched(cache, numbers(1, 8)), 7);
}

TEST(WindowCache, PinsHoldTheirWindow) {
  RadixCache cache({.page_size = 4, .num_blocks = 100, .window = 8, .window_blocks = 40});
  put(cache, numbers(1, 40));
  PrefixLease pin = cache.pin("", numbers(1, 40));
  EXPECT_EQ(cache.window_pinned_blocks(), 2);
  EXPECT_EQ(cache.window_available_blocks(), 38);
  PrefixLease other;
  EXPECT_FALSE(cache.acquire_window(39, other));
  EXPECT_TRUE(cache.acquire_window(38, other));
  EXPECT_EQ(matched(cache, numbers(1, 40), {&pin, &other}), 40);
  cache.abandon(other);
  cache.clear();
  EXPECT_EQ(cache.window_cached_blocks(), 2);
  cache.unpin(pin);
  cache.clear();
  EXPECT_EQ(cache.window_free_blocks(), 40);
  EXPECT_EQ(cache.window_pinned_blocks(), 0);
}

}  // namespace
}  // namespace tokenmill
