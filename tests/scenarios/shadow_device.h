// A device whose K/V are the token ids themselves: the next token is a hash of the prefix that is read back through the
// block table, so a wrong block, an early free or a stale lease changes the answer.
//
// Independent of the scheduler: expected_output() says from the tokens alone what a sequence must produce.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "batch/batch.h"
#include "sched/sequence_spec.h"

namespace tokenmill::testing {

inline uint64_t hash_step(uint64_t state, uint64_t value) {
  uint64_t x = state ^ (value + 0x9e3779b97f4a7c15ull + (state << 6) + (state >> 2));
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// What decides a draw besides the prefix.
struct DrawKey {
  uint64_t seed = 0;
  uint32_t sample_index = 0, position = 0;
  int64_t penalty_sum = 0;  // a digest of the output counts, where a penalty is on
};

// The token drawn after a prefix of this hash; banned(id) tells what may not come.
template <typename Banned>
int32_t draw_token(uint64_t prefix_hash, const DrawKey& key, int32_t vocab_size, Banned banned) {
  uint64_t state = hash_step(hash_step(hash_step(prefix_hash, key.seed), key.sample_index), key.position);
  state = hash_step(state, static_cast<uint64_t>(key.penalty_sum));
  for (int attempt = 0; attempt < 1000; ++attempt) {
    auto token = static_cast<int32_t>(state % static_cast<uint64_t>(vocab_size));
    if (!banned(token)) return token;
    state = hash_step(state, 1);
  }
  return -1;
}

class ShadowDevice {
 public:
  // window, window_blocks: of the window group, which has rows of its own; 0: none.
  ShadowDevice(int32_t num_blocks, int32_t page_size, int32_t vocab_size, int32_t window = 0, int32_t window_blocks = 0)
      : page_size_(page_size),
        vocab_size_(vocab_size),
        window_(window),
        rows_(static_cast<size_t>(num_blocks) * page_size, kPoison),
        window_rows_(static_cast<size_t>(window > 0 ? window_blocks : 0) * page_size, kPoison) {}

  StepResult run(const Batch& batch) {
    launch(batch);
    return sample(batch);
  }

  // The forward pass; may come before the step before is committed, whose sample() has been called.
  void launch(const Batch& batch) {
    tokens_ = batch.tokens;
    for (const SlotToken& token : batch.slot_tokens) {
      if (tokens_.at(token.token_index) != 0) throw std::logic_error("a token of a slot is named");
      tokens_.at(token.token_index) = slots_.at(token.slot);
    }
    for (const BlockCopy& copy : batch.copies) {
      for (int32_t row = 0; row < copy.num_rows; ++row) {
        slot(copy.target_block, row) = slot(copy.source_block, row);
      }
    }
    for (const BlockCopy& copy : batch.window_copies) {
      for (int32_t row = 0; row < copy.num_rows; ++row) {
        window_slot(copy.target_block, row) = window_slot(copy.source_block, row);
      }
    }
    // As on a real device, all of the step's K/V are written before any row reads.
    for (const BatchRow& row : batch.rows) write(batch, row);
    for (const BatchRow& row : batch.rows) read_window(batch, row);
  }

  StepResult sample(const Batch& batch) {
    StepResult result;
    result.step = batch.step;
    for (size_t i = 0; i < batch.sampling.size(); ++i) {
      result.sampled.push_back(sample(batch, batch.rows[batch.sampling_rows[i]], batch.sampling[i]));
    }
    slots_.clear();
    for (const SampledToken& sampled : result.sampled) slots_.push_back(std::max(0, sampled.token));
    return result;
  }

  // A step that failed half-way: what it was to write is garbage.
  void spoil(const Batch& batch) {
    for (const BlockCopy& copy : batch.copies) {
      for (int32_t row = 0; row < copy.num_rows; ++row) slot(copy.target_block, row) = kPoison;
    }
    for (const BatchRow& row : batch.rows) {
      for (int32_t position = row.kv_len - row.q_len; position < row.kv_len; ++position) {
        slot(batch.block_tables.at(row.block_begin + position / page_size_), position % page_size_) = kPoison;
        if (window_ == 0) continue;
        window_slot(batch.window_tables.at(row.block_begin + position / page_size_), position % page_size_) = kPoison;
      }
    }
    for (const BlockCopy& copy : batch.window_copies) {
      for (int32_t row = 0; row < copy.num_rows; ++row) window_slot(copy.target_block, row) = kPoison;
    }
  }

  // Of all tokens of the row, as they are read back.
  uint64_t prefix_hash(const Batch& batch, const BatchRow& row) const {
    uint64_t hash = 0;
    for (int32_t position = 0; position < row.kv_len; ++position) {
      const int32_t block = batch.block_tables.at(row.block_begin + position / page_size_);
      const size_t index = static_cast<size_t>(block) * page_size_ + position % page_size_;
      hash = hash_step(hash, static_cast<uint64_t>(rows_.at(index)));
    }
    return hash;
  }

 private:
  static constexpr int32_t kPoison = -7;

  int32_t& slot(int32_t block, int32_t row) { return rows_.at(static_cast<size_t>(block) * page_size_ + row); }
  int32_t& window_slot(int32_t block, int32_t row) {
    if (block < 0) throw std::logic_error("a window block is used that is not held");
    return window_rows_.at(static_cast<size_t>(block) * page_size_ + row);
  }

  // All that the row's tokens see through their windows must be what the other group holds there.
  void read_window(const Batch& batch, const BatchRow& row) {
    if (window_ == 0) return;
    for (int32_t p = std::max(0, row.kv_len - row.q_len - window_ + 1); p < row.kv_len; ++p) {
      const size_t entry = static_cast<size_t>(row.block_begin + p / page_size_);
      if (window_slot(batch.window_tables.at(entry), p % page_size_) !=
          slot(batch.block_tables.at(entry), p % page_size_)) {
        throw std::logic_error("position " + std::to_string(p) + " of the window group holds something else");
      }
    }
  }

  void write(const Batch& batch, const BatchRow& row) {
    for (int32_t i = 0; i < row.q_len; ++i) {
      int32_t position = row.kv_len - row.q_len + i;
      if (batch.positions.at(row.token_begin + i) != position) throw std::logic_error("a token's position is wrong");
      int32_t block = batch.block_tables.at(row.block_begin + position / page_size_);
      slot(block, position % page_size_) = tokens_.at(row.token_begin + i);
      if (window_ == 0) continue;
      const int32_t window_block = batch.window_tables.at(row.block_begin + position / page_size_);
      window_slot(window_block, position % page_size_) = tokens_.at(row.token_begin + i);
    }
  }

  SampledToken sample(const Batch& batch, const BatchRow& row, const SamplingRow& how) {
    if (how.token_index != row.token_begin + row.q_len - 1) throw std::logic_error("a sampled index is wrong");
    const uint64_t hash = prefix_hash(batch, row);
    DrawKey key{how.seed, how.sample_index, how.position, 0};
    if (how.counts) {
      for (auto [id, count] : how.counts->output_ids) key.penalty_sum += (id + 1) * static_cast<int64_t>(count);
    }
    auto in = [](const std::vector<int32_t>* ids, int32_t token) {
      return ids && std::binary_search(ids->begin(), ids->end(), token);
    };
    SampledToken sampled;
    sampled.token = draw_token(hash, key, vocab_size_, [&](int32_t token) {
      return in(how.banned_ids, token) || in(how.banned_ids_more, token) ||
             (how.allowed_ids && !in(how.allowed_ids, token));
    });
    sampled.invalid = sampled.token < 0;
    return sampled;
  }

  int32_t page_size_, vocab_size_, window_;
  std::vector<int32_t> rows_, window_rows_;
  std::vector<int32_t> tokens_;  // of the step launched last
  std::vector<int32_t> slots_;   // of the step sampled last
};

// What a sequence must produce, from its tokens alone (stop patterns apart).
inline std::vector<int32_t> expected_output(const SequenceSpec& spec, int32_t vocab_size) {
  uint64_t hash = 0;
  for (int32_t token : *spec.prompt) hash = hash_step(hash, static_cast<uint64_t>(token));
  std::vector<int32_t> output;
  bool penalty = spec.frequency_penalty != 0 || spec.presence_penalty != 0 || spec.repetition_penalty != 1;
  auto contains = [](const std::vector<int32_t>& ids, int32_t token) {
    return std::find(ids.begin(), ids.end(), token) != ids.end();
  };
  while (static_cast<int64_t>(output.size()) < spec.max_new_tokens) {
    auto position = static_cast<uint32_t>(spec.prompt->size() + output.size());
    DrawKey key{spec.seed, spec.sample_index, position, 0};
    if (penalty) {
      for (int32_t token : output) key.penalty_sum += token + 1;
    }
    bool too_early = static_cast<int64_t>(output.size()) < spec.min_new_tokens;
    int32_t token = draw_token(hash, key, vocab_size, [&](int32_t id) {
      if (contains(spec.banned_ids, id) || (too_early && contains(spec.stop_ids, id))) return true;
      if (spec.allowed_ids && !contains(*spec.allowed_ids, id)) return true;
      for (const std::vector<int32_t>& word : spec.banned_sequences) {
        if (word.empty() || word.back() != id || word.size() - 1 > output.size()) continue;
        if (std::equal(word.begin(), word.end() - 1, output.end() - static_cast<std::ptrdiff_t>(word.size() - 1))) {
          return true;
        }
      }
      return false;
    });
    output.push_back(token);
    hash = hash_step(hash, static_cast<uint64_t>(token));
    if (contains(spec.stop_ids, token)) break;
  }
  return output;
}

}  // namespace tokenmill::testing
