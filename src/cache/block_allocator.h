// Which physical KV blocks are free. A block is free or in use once; who uses it is the radix cache's business.
//
// Last in, first out: blocks that were just given back are handed out first, so a small load touches few pages.
#pragma once

#include <cstdint>
#include <vector>

namespace tokenmill {

class BlockAllocator {
 public:
  explicit BlockAllocator(int32_t num_blocks);

  // Appends n blocks to `out`, or returns false and takes none.
  bool acquire(int64_t n, std::vector<int32_t>& out);
  // Throws InvariantError when the block is not in use.
  void release(int32_t block);

  bool is_free(int32_t block) const { return !used_[block]; }
  int64_t free_blocks() const { return static_cast<int64_t>(free_.size()); }
  int64_t total_blocks() const { return static_cast<int64_t>(used_.size()); }
  void check_integrity() const;

 private:
  std::vector<int32_t> free_;  // a stack
  std::vector<char> used_;
};

}  // namespace tokenmill
