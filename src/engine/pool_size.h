// How many KV blocks the pool has, from options and memory: contract section 6, the CPU's rules.
#pragma once

#include <cstdint>

#include "tokenmill/server_args.h"

namespace tokenmill {

struct PoolFacts {
  int64_t context_length = 0;         // tokens
  int64_t block_bytes = 0;            // one block over all layers
  int64_t available_bytes = 0;        // now, the weights loaded; 0: not known
  int64_t available_before_load = 0;  // 0: not known
  int64_t weight_bytes = 0;
};

// args resolved: page_size and max_running_requests are set. At least one block. Throws Error(kRuntime)
// "Not enough memory. Please try to …".
int32_t choose_num_blocks(const ServerArgs& args, const PoolFacts& facts);

// "12.34", of a GiB each.
std::string gib_text(int64_t bytes);

}  // namespace tokenmill
