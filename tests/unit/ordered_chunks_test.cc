// OrderedChunks against std::set.
#include "cache/ordered_chunks.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace tokenmill {
namespace {

TEST(OrderedChunks, IsASet) {
  std::mt19937_64 random(1);
  for (const uint64_t range : {8u, 300u, 100000u}) {
    OrderedChunks<int64_t> chunks;
    std::set<int64_t> set;
    for (int i = 0; i < 20000; ++i) {
      const auto value = static_cast<int64_t>(random() % range);
      // It grows for a while, then shrinks.
      if (random() % 8 < (i < 10000 ? 5 : 2)) {
        ASSERT_EQ(chunks.insert(value), set.insert(value).second);
      } else {
        ASSERT_EQ(chunks.erase(value), set.erase(value) == 1);
      }
      ASSERT_EQ(chunks.size(), set.size());
      ASSERT_EQ(chunks.empty(), set.empty());
      if (!set.empty()) {
        ASSERT_EQ(chunks.front(), *set.begin());
      }
      const auto probe = static_cast<int64_t>(random() % range);
      ASSERT_EQ(chunks.contains(probe), set.contains(probe));
      const auto lower = chunks.lower_bound(probe), upper = chunks.upper_bound(probe);
      const auto set_lower = set.lower_bound(probe), set_upper = set.upper_bound(probe);
      ASSERT_EQ(lower == chunks.end(), set_lower == set.end());
      ASSERT_EQ(upper == chunks.end(), set_upper == set.end());
      if (set_lower != set.end()) {
        ASSERT_EQ(*lower, *set_lower);
      }
      if (set_upper != set.end()) {
        ASSERT_EQ(*upper, *set_upper);
      }
      if (set_lower != set.begin()) {
        ASSERT_EQ(*std::prev(lower), *std::prev(set_lower));
      }
      if (i % 1000 == 0) {
        ASSERT_TRUE(std::equal(chunks.begin(), chunks.end(), set.begin(), set.end()));
      }
    }
    while (!set.empty()) {
      ASSERT_TRUE(chunks.erase(*set.begin()));
      set.erase(set.begin());
    }
    ASSERT_TRUE(chunks.begin() == chunks.end());
  }
}

TEST(OrderedChunks, KeepsWhatComesInOrder) {
  OrderedChunks<int> chunks;
  for (int i = 0; i < 1000; ++i) ASSERT_TRUE(chunks.insert(i));
  for (int i = 0; i < 1000; ++i) {
    ASSERT_EQ(chunks.front(), i);
    ASSERT_TRUE(chunks.erase(i));
  }
  EXPECT_TRUE(chunks.empty());
}

}  // namespace
}  // namespace tokenmill
