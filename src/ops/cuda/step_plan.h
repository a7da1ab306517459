// What plan() puts on the device for rope_kv_write and attention, in one copy together with the step's ids.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/cuda/cuda_backend.h"

namespace tokenmill {

struct PlanRow {
  int32_t q_len, kv_len, token_begin, block_begin;
};

// Query rows (query x head of the group) a block of the tensor core kernels takes: of sequences with few new tokens,
// and of those with many.
constexpr int32_t kTensorFewRows = 16, kTensorManyRows = 128;
// The same of the plain kernel: where no sequence has more than the first, and else.
constexpr int32_t kPlainFewRows = 8, kPlainManyRows = 32;

// A unit is a run of up to that many, or rows_per_block, query rows of one sequence; an item is one split of its keys.
// Every item is one block a KV head.
struct CudaAttentionItem {
  int32_t row, first;         // first query row: query * group + head in group
  int32_t split, num_splits;  // no splits: nothing to do, there to fill a record's grid
  int32_t unit;               // which counter
  int32_t partial;            // which partial result is split 0's; unused if there is one split
};

struct CudaAttentionSchedule {
  int32_t group = 0, kv_heads = 0;
  bool tensor = false;                               // for tensor_attention.h; else for the plain kernel
  int32_t plain_rows_max = 0, rows_per_block = 0;    // of the plain kernel: at most, and in this step
  std::vector<CudaAttentionItem> items, many_items;  // many_items: tensor only, of sequences with many new tokens
  int64_t many_keys = 0;                             // of those sequences
  int32_t num_units = 0, num_partials = 0;
  // Tensor only: the most query rows of an item of `items`, tiles of keys in shared memory, whether the longest split
  // has two tiles and few blocks are at work.
  int32_t few_rows_max = 0, stages = 0;
  bool two_tiles = false;
  const CudaAttentionItem *device_items = nullptr, *device_many_items = nullptr;
};

struct CudaBackend::StepPlan {
  explicit StepPlan(ScratchMoves& moves) : upload(moves), late_upload(moves) {}

  // Rows of a layer group (by KvGroup) say where their tables lie; those of the window group are empty where the batch
  // has none.
  std::vector<PlanRow> rows, window_rows;
  int32_t num_tokens = 0, page_shift = 0;
  std::vector<int32_t> tokens, positions, sampled;                    // as they were sent, to know them again
  const int32_t *batch_tokens = nullptr, *batch_positions = nullptr;  // the batch's own arrays, for the same end
  bool takes_slots = false;  // some tokens are on the device only: device_tokens holds others than `tokens`
  bool decode_only = false;  // every row has one token
  bool one_split = false;    // for deterministic inference: where keys are split depends on the whole step, and which
                             // kernel on the number of new tokens
  std::vector<SlotToken> slot_tokens;        // of the batch, filled up to one a row
  std::vector<int32_t> slots, window_slots;  // [num_tokens] block * page_size + row inside the block

  std::vector<int32_t> tables;  // of the full group, then of the window group
  PackedUpload upload;
  const int32_t *device_tokens = nullptr, *device_positions = nullptr, *device_sampled = nullptr;
  const int32_t *device_slots[2] = {}, *device_tables = nullptr;  // slots and rows by KvGroup
  const PlanRow* device_rows[2] = {};

  // One for each pair of head counts and kind met so far; a new one is sent by itself the first time.
  std::vector<CudaAttentionSchedule> schedules;
  PackedUpload late_upload;

  void fill(CudaAttentionSchedule& schedule, int num_sms) const;
  void fill_plain(CudaAttentionSchedule& schedule, int num_sms) const;
  void fill_tensor(CudaAttentionSchedule& schedule, int num_sms) const;
  // Whether a sequence counts as one with few new tokens; and how many keys a block of those takes at most, with how
  // many stages.
  bool has_few(const PlanRow& row, const CudaAttentionSchedule& schedule) const;
  struct KeyCut {
    int64_t keys_per_block;
    int stages;
  };
  KeyCut cut_keys(const CudaAttentionSchedule& schedule, int num_sms) const;
  // All schedules' items into an upload, and, once it is sent, their places.
  std::vector<size_t> add_items(PackedUpload& to) const;
  void set_items(const PackedUpload& from, std::span<const size_t> offsets);
  // Steps of one token a row have schedules of a few sizes only, filled with items that do nothing, so that records of
  // them fit many steps. What tells these sizes apart:
  uint64_t shape() const;
  const CudaAttentionSchedule& schedule(int32_t group, int32_t kv_heads, bool tensor, int32_t plain_rows_max,
                                        int num_sms, cudaStream_t stream);
};

}  // namespace tokenmill
