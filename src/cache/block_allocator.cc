#include "cache/block_allocator.h"

#include "base/check.h"

namespace tokenmill {

BlockAllocator::BlockAllocator(int32_t num_blocks) {
  TM_CHECK(num_blocks >= 0);
  used_.assign(num_blocks, 0);
  free_.reserve(num_blocks);
  for (int32_t block = num_blocks - 1; block >= 0; --block) free_.push_back(block);
}

bool BlockAllocator::acquire(int64_t n, std::vector<int32_t>& out) {
  TM_CHECK(n >= 0);
  if (n > free_blocks()) return false;
  for (int64_t i = 0; i < n; ++i) {
    int32_t block = free_.back();
    free_.pop_back();
    used_[block] = 1;
    out.push_back(block);
  }
  return true;
}

void BlockAllocator::release(int32_t block) {
  TM_CHECK(block >= 0 && block < total_blocks());
  TM_CHECK(used_[block]);
  used_[block] = 0;
  free_.push_back(block);
}

void BlockAllocator::check_integrity() const {
  std::vector<char> seen(used_.size(), 0);
  for (int32_t block : free_) {
    TM_CHECK(block >= 0 && block < total_blocks());
    TM_CHECK(!seen[block] && !used_[block]);
    seen[block] = 1;
  }
  int64_t in_use = 0;
  for (char used : used_) in_use += used;
  TM_CHECK(in_use + free_blocks() == total_blocks());
}

}  // namespace tokenmill
