// What plan() remembers of a step for rope_kv_write and attention.
#pragma once

#include <cstdint>
#include <vector>

#include "batch/batch.h"
#include "ops/cpu/cpu_backend.h"

namespace tokenmill {

struct CpuBackend::StepPlan {
  std::vector<BatchRow> rows;
  std::vector<int32_t> block_tables;  // physical block ids, row after row (BatchRow::block_begin)
  int32_t num_tokens = 0;
  int32_t page_shift = 0;              // log2(page_size)
  std::vector<int32_t> token_blocks;   // [num_tokens] physical block of each new token
  std::vector<int32_t> token_offsets;  // [num_tokens] its row inside that block
};

}  // namespace tokenmill
