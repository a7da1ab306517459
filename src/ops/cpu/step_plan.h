// What plan() remembers of a step for rope_kv_write and attention.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "batch/batch.h"
#include "ops/cpu/cpu_backend.h"

namespace tokenmill {

// A unit is one (row, KV head, block of queries): its output rows are computed together, so that a KV tile is read
// once for all of them. The visible keys are taken in pieces of kPieceKeys at absolute multiples.
struct AttentionUnit {
  int32_t row = 0, kv_head = 0;
  int32_t first_query = 0, num_queries = 0;  // within the row
  int32_t first_piece = 0, num_pieces = 0;
  int64_t cost = 0;
  int64_t partial_begin = -1;  // floats into the partial results; -1: one worker does all pieces
  int32_t counter = -1;        // split units: which counter tells the last piece
};

// One claim of a worker: a unit, or one piece of a split unit.
struct AttentionItem {
  int32_t unit = 0;
  int32_t piece = -1;  // -1: all
  int64_t cost = 0;
};

// The work of one attention call; calls of one step with the same heads and window share it.
struct AttentionSchedule {
  int32_t q_heads = 0, kv_heads = 0, head_dim = 0, window = 0;
  std::vector<AttentionUnit> units;
  std::vector<AttentionItem> items;  // largest first
  int64_t partial_floats = 0;
  int32_t num_counters = 0;
};

struct CpuBackend::StepPlan {
  std::vector<BatchRow> rows;
  // What a group of layers has for itself.
  struct Group {
    std::vector<int32_t> block_tables;  // physical block ids, row after row (BatchRow::block_begin)
    std::vector<int32_t> token_blocks;  // [num_tokens] physical block of each new token
  };
  Group groups[2];  // by KvGroup; the window's is empty where the batch has none
  const Group& group(const KvLayer& kv) const { return groups[static_cast<size_t>(kv.group)]; }
  int32_t num_tokens = 0;
  int32_t page_shift = 0;              // log2(page_size)
  std::vector<int32_t> token_offsets;  // [num_tokens] the row of each new token inside its block

  std::vector<AttentionSchedule> schedules;  // the first num_schedules are this step's; the rest is kept memory
  size_t num_schedules = 0;
  std::unique_ptr<std::atomic<int32_t>[]> counters;  // pieces left of each split unit
  int32_t counters_size = 0;

  const AttentionSchedule& schedule(const AttentionArgs& args, int32_t threads);
};

}  // namespace tokenmill
