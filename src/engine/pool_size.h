// How many KV blocks the pool has and how many requests run at once, from options and memory: contract section 6.
#pragma once

#include <cstdint>

#include "tokenmill/server_args.h"

namespace tokenmill {

struct PoolFacts {
  int64_t context_length = 0;  // tokens
  int64_t block_bytes = 0;     // one block over all layers, or over those that see everything
  // Where layers with a window have a pool of their own: their window, their part of a step (tokens of the longest
  // chunk) and the bytes of one block over all of them. 0: no such pool.
  int64_t window = 0, chunk_tokens = 0, window_block_bytes = 0;
  int64_t available_bytes = 0;        // now, the weights loaded; 0: not known
  int64_t available_before_load = 0;  // 0: not known
  int64_t weight_bytes = 0;
  bool own_memory = false;  // the device's, which the pool may fill; else the host's, of which it takes a quarter
};

struct PoolBlocks {
  int32_t full = 0;
  int32_t window = 0;  // 0: no such pool
};

// Blocks of both pools. With max_total_tokens the window layers get what max_running_requests windows and a chunk need,
// and a quarter of max_total_tokens for cached prefixes; less where memory is short. Without it, memory is shared out
// so that the window layers hold about half as many tokens as the others. Never more than these. Else as
// choose_num_blocks.
PoolBlocks choose_pool_blocks(const ServerArgs& args, const PoolFacts& facts);

// args resolved: page_size and, without memory of the device's own, max_running_requests are set. At least one block.
// Throws Error(kRuntime) "Not enough memory. Please try to …".
int32_t choose_num_blocks(const ServerArgs& args, const PoolFacts& facts);

// max_running_requests where the pool decides, by SGLang's rule: 512 full contexts' worth, within [2048, 4096], and
// one; never more than half the pool's tokens.
int64_t choose_running_requests(int64_t max_total_num_tokens, int64_t context_length);

// "12.34", of a GiB each.
std::string gib_text(int64_t bytes);

}  // namespace tokenmill
