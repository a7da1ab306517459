#include <gtest/gtest.h>

#include "base/check.h"
#include "cache/block_allocator.h"

namespace tokenmill {
namespace {

TEST(BlockAllocator, HandsOutEveryBlockOnce) {
  BlockAllocator allocator(5);
  std::vector<int32_t> blocks;
  EXPECT_FALSE(allocator.acquire(6, blocks));
  EXPECT_TRUE(blocks.empty());
  EXPECT_TRUE(allocator.acquire(5, blocks));
  EXPECT_EQ(blocks, (std::vector<int32_t>{0, 1, 2, 3, 4}));
  EXPECT_FALSE(allocator.acquire(1, blocks));
  EXPECT_TRUE(allocator.acquire(0, blocks));
  allocator.check_integrity();
}

TEST(BlockAllocator, ReusesTheLastFreedFirst) {
  BlockAllocator allocator(4);
  std::vector<int32_t> blocks;
  allocator.acquire(3, blocks);
  allocator.release(1);
  EXPECT_TRUE(allocator.is_free(1));
  blocks.clear();
  allocator.acquire(1, blocks);
  EXPECT_EQ(blocks[0], 1);
  EXPECT_EQ(allocator.free_blocks(), 1);
}

TEST(BlockAllocator, RefusesWhatIsNotInUse) {
  BlockAllocator allocator(2);
  EXPECT_THROW(allocator.release(0), InvariantError);
  EXPECT_THROW(allocator.release(2), InvariantError);
  EXPECT_THROW(allocator.release(-1), InvariantError);
}

}  // namespace
}  // namespace tokenmill
