// The joint between the host column (cache, sched) and the device column (runner, models, ops): one step's work as
// plain integers and floats. A prefill chunk and a decode differ in numbers only and ride in one Batch.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace tokenmill {

// Which layers share block tables: those that see everything, and those that see a window and so hold no more.
enum class KvGroup { kFull, kWindow };

// One sequence's share of the step: q_len new tokens that end at kv_len.
//
//   kv:  [0 ........ kv_len - q_len) cached   [kv_len - q_len ... kv_len) written by this step
struct BatchRow {
  uint64_t sequence_id = 0;
  int32_t q_len = 0;        // >= 1
  int32_t kv_len = 0;       // tokens held after this step, >= q_len
  int32_t token_begin = 0;  // first of its q_len tokens in Batch::tokens
  int32_t block_begin = 0;  // first of its blocks in Batch::block_tables and window_tables
  int32_t num_blocks = 0;   // ceil(kv_len / page_size)
};

// Copies the first `num_rows` token rows of one physical block into another, before the forward pass: the matched part
// of a partly shared block gets a new owner.
struct BlockCopy {
  int32_t source_block = 0, target_block = 0, num_rows = 0;
};

// What penalties look at. Owned by the sequence, updated when a token is committed.
struct TokenCounts {
  std::vector<int32_t> prompt_ids;                      // distinct, sorted
  std::vector<std::pair<int32_t, int32_t>> output_ids;  // (id, count), distinct, sorted by id
};

// The caller's own change to one row's logits (host memory, [vocab_size]), given the tokens generated so far. What it
// throws ends its request.
using LogitEdit = std::function<void(std::span<const int32_t> output_ids, std::span<float> logits)>;

// How to sample from one row's last token (or token `token_index`).
struct SamplingRow {
  int32_t token_index = 0;  // index into Batch::tokens of the position whose logits are sampled
  float temperature = 1;    // 0: greedy
  int32_t top_k = 0;        // 0: off
  float top_p = 1, min_p = 0;
  float frequency_penalty = 0, presence_penalty = 0, repetition_penalty = 1;
  uint64_t seed = 0;  // Philox key; the counter is (sample_index, position)
  uint32_t sample_index = 0;
  uint32_t position = 0;                                               // absolute position of the token being drawn
  const TokenCounts* counts = nullptr;                                 // non-null iff a penalty is on
  const std::vector<std::pair<int32_t, float>>* logit_bias = nullptr;  // ids ascend; null: none
  const std::vector<int32_t>* banned_ids = nullptr;                    // masked now (bad_words, EOS before min)
  const std::vector<int32_t>* banned_ids_more = nullptr;               // a second list, so that neither is copied
  const std::vector<int32_t>* allowed_ids = nullptr;                   // null: all; sorted
  const LogitEdit* logit_edit = nullptr;                               // applied before all of the above; null: none
  std::span<const int32_t> output_ids = {};                            // with logit_edit
  bool want_logprob = false;
  int32_t top_logprobs = 0;                           // 0: none
  const std::vector<int32_t>* logprob_ids = nullptr;  // logprobs of these ids
};

// A token that the step before has drawn and that the host does not know yet: Batch::tokens holds 0 in its place.
struct SlotToken {
  int32_t token_index = 0;  // into Batch::tokens
  int32_t slot = 0;         // index of its SamplingRow in the step before
};

struct Batch {
  uint64_t step = 0;
  std::vector<int32_t> tokens;     // all rows' new tokens, row after row
  std::vector<int32_t> positions;  // absolute, same length as tokens
  std::vector<BatchRow> rows;
  std::vector<int32_t> block_tables;  // physical block ids, row after row
  std::vector<BlockCopy> copies;      // in order
  // The same for the group of layers with a window, which has a pool of its own: the same places of the same length, -1
  // where the block lies behind the window and is not held. Empty: these layers are held as all others are.
  std::vector<int32_t> window_tables;
  std::vector<BlockCopy> window_copies;
  std::vector<SlotToken> slot_tokens;  // empty unless the step is launched before the one before it is committed
  std::vector<SamplingRow> sampling;   // rows that finish their prompt or decode this step
  std::vector<int32_t> sampling_rows;  // index into rows, one a SamplingRow

  const std::vector<int32_t>& tables(KvGroup group) const {
    return group == KvGroup::kWindow ? window_tables : block_tables;
  }
};

struct SampledToken {
  int32_t token = -1;
  bool invalid = false;  // logits held NaN, or every token was masked; token is -1
  std::string error;     // with invalid: what the row's logit_edit threw
  float logprob = 0;     // log-softmax of the raw logits (before penalties, masks, temperature)
  std::vector<std::pair<int32_t, float>> top_logprobs;  // (id, logprob), best first, ties by id
  std::vector<std::pair<int32_t, float>> ids_logprobs;  // in the order asked
};

struct StepResult {
  uint64_t step = 0;
  std::vector<SampledToken> sampled;  // one a SamplingRow, same order
};

}  // namespace tokenmill
