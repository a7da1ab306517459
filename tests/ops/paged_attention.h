// Drives rope_kv_write and attention as the runner does: sequences in chunks, in shared steps, over a paged pool whose
// every byte is NaN until it is written.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "batch/batch.h"
#include "ops/backend.h"
#include "ops/reference.h"

namespace tokenmill::reference {

struct AttentionShape {
  int32_t q_heads = 1, kv_heads = 1, head_dim = 64;
  DType dtype = DType::kBF16;
  int32_t window = 0;
  float softcap = 0, scale = 0.125f;
  int64_t qkv_cols() const { return int64_t{q_heads + 2 * kv_heads} * head_dim; }
};

// What one step computes: (sequence, number of its next tokens), each sequence at most once.
using Step = std::vector<std::pair<size_t, int32_t>>;

class PagedPool {
 public:
  PagedPool(Backend& backend, const AttentionShape& shape, int32_t page_size, int32_t num_blocks, uint64_t seed)
      : backend_(backend), shape_(shape), page_size_(page_size), free_blocks_(static_cast<size_t>(num_blocks)) {
    const int64_t block_bytes = backend.kv_block_bytes(shape.kv_heads, shape.head_dim, page_size, shape.dtype);
    const size_t bytes = static_cast<size_t>(block_bytes * num_blocks);
    memory_ = backend.allocate(bytes);
    const std::vector<std::byte> nan(bytes, std::byte{0xff});
    backend.copy_from_host(memory_, nan.data(), bytes);
    kv_ = {.base = memory_,
           .block_bytes = block_bytes,
           .num_blocks = num_blocks,
           .page_size = page_size,
           .kv_heads = shape.kv_heads,
           .head_dim = shape.head_dim,
           .dtype = shape.dtype};
    std::iota(free_blocks_.begin(), free_blocks_.end(), 0);
    std::mt19937_64 random(seed);
    std::shuffle(free_blocks_.begin(), free_blocks_.end(), random);
  }
  ~PagedPool() { backend_.free(memory_); }
  PagedPool(const PagedPool&) = delete;
  PagedPool& operator=(const PagedPool&) = delete;

  const KvLayer& kv() const { return kv_; }

  // From now on the layer is of the window group: what lies behind the window is given up after each step, filled with
  // NaN and handed to others, and the tables say -1 there.
  void free_behind_window() { kv_.group = KvGroup::kWindow; }
  int32_t free_blocks() const { return static_cast<int32_t>(free_blocks_.size()); }

  // Runs the steps; qkv[s] holds sequence s's projections, row by position. Returns attention's rows by position.
  std::vector<Table> run(const std::vector<Table>& qkv, const std::vector<Step>& steps) {
    tables_.assign(qkv.size(), {});
    done_.assign(qkv.size(), 0);
    std::vector<Table> outs;
    for (const Table& table : qkv) outs.emplace_back(table.rows(), int64_t{shape_.q_heads} * shape_.head_dim);
    for (const Step& step : steps) run_step(qkv, step, outs);
    return outs;
  }

  // Gives `sequence` the first `count` positions of `owner`: blocks are shared, but of the last one its rows are
  // copied.
  void adopt_prefix(size_t sequence, size_t owner, int32_t count) {
    const int32_t shared = (count - 1) / page_size_;
    tables_[sequence].assign(tables_[owner].begin(), tables_[owner].begin() + shared);
    done_[sequence] = count;
    const int32_t target = free_blocks_.back();
    free_blocks_.pop_back();
    const std::vector<BlockCopy> copies = {
        {tables_[owner][static_cast<size_t>(shared)], target, count - shared * page_size_}};
    backend_.copy_blocks(kv_, copies);
    tables_[sequence].push_back(target);
  }

  void run_step(const std::vector<Table>& qkv, const Step& step, std::vector<Table>& outs) {
    Batch batch;
    for (const auto& [sequence, count] : step) add_row(sequence, count, batch);
    const int64_t tokens = static_cast<int64_t>(batch.tokens.size());
    Table step_qkv(tokens, shape_.qkv_cols()), step_out(tokens, int64_t{shape_.q_heads} * shape_.head_dim);
    for (size_t r = 0; r < step.size(); ++r) {
      for (int32_t i = 0; i < step[r].second; ++i) {
        const int64_t position = batch.rows[r].kv_len - batch.rows[r].q_len + i;
        for (int64_t c = 0; c < shape_.qkv_cols(); ++c) {
          step_qkv.at(batch.rows[r].token_begin + i, c) = qkv[step[r].first].at(position, c);
        }
      }
    }
    backend_.plan(batch, page_size_);
    backend_.rope_kv_write({.qkv = step_qkv.view(),
                            .q_heads = shape_.q_heads,
                            .rope = nullptr,
                            .q_norm = nullptr,
                            .k_norm = nullptr,
                            .kv = kv_});
    backend_.attention({.q = step_qkv.view(),
                        .q_heads = shape_.q_heads,
                        .kv = kv_,
                        .scale = shape_.scale,
                        .softcap = shape_.softcap,
                        .window = shape_.window,
                        .out = step_out.view()});
    for (size_t r = 0; r < step.size(); ++r) {
      for (int32_t i = 0; i < step[r].second; ++i) {
        const int64_t position = batch.rows[r].kv_len - batch.rows[r].q_len + i;
        for (int64_t c = 0; c < step_out.cols(); ++c) {
          outs[step[r].first].at(position, c) = step_out.at(batch.rows[r].token_begin + i, c);
        }
      }
      if (kv_.group == KvGroup::kWindow) give_up_blocks(step[r].first);
    }
  }

 private:
  void add_row(size_t sequence, int32_t count, Batch& batch) {
    std::vector<int32_t>& table = tables_[sequence];
    BatchRow row;
    row.sequence_id = sequence;
    row.q_len = count;
    row.kv_len = done_[sequence] += count;
    row.token_begin = static_cast<int32_t>(batch.tokens.size());
    row.block_begin = static_cast<int32_t>(batch.block_tables.size());
    row.num_blocks = (row.kv_len + page_size_ - 1) / page_size_;
    while (static_cast<int32_t>(table.size()) < row.num_blocks) {
      table.push_back(free_blocks_.back());
      free_blocks_.pop_back();
    }
    if (kv_.group == KvGroup::kWindow) {  // the other group's blocks are no concern of this layer
      batch.block_tables.insert(batch.block_tables.end(), static_cast<size_t>(row.num_blocks), 0);
      batch.window_tables.insert(batch.window_tables.end(), table.begin(), table.begin() + row.num_blocks);
    } else {
      batch.block_tables.insert(batch.block_tables.end(), table.begin(), table.begin() + row.num_blocks);
    }
    for (int32_t i = 0; i < count; ++i) {
      batch.tokens.push_back(0);
      batch.positions.push_back(row.kv_len - count + i);
    }
    batch.rows.push_back(row);
  }

  // What no later token of the sequence sees.
  void give_up_blocks(size_t sequence) {
    const std::vector<std::byte> nan(static_cast<size_t>(kv_.block_bytes), std::byte{0xff});
    for (int32_t i = 0; (i + 1) * page_size_ <= done_[sequence] - shape_.window + 1; ++i) {
      int32_t& block = tables_[sequence][static_cast<size_t>(i)];
      if (block < 0) continue;
      backend_.copy_from_host(kv_.base + block * kv_.block_bytes, nan.data(), nan.size());
      free_blocks_.push_back(block);
      block = -1;
    }
  }

  Backend& backend_;
  AttentionShape shape_;
  int32_t page_size_;
  std::vector<int32_t> free_blocks_;
  std::byte* memory_ = nullptr;
  KvLayer kv_;
  std::vector<std::vector<int32_t>> tables_;
  std::vector<int32_t> done_;
};

// Cuts `tokens` into chunks of random length up to chunk_max.
inline std::vector<int32_t> random_chunks(int32_t tokens, int32_t chunk_max, std::mt19937_64& random) {
  std::vector<int32_t> chunks;
  for (int32_t left = tokens; left > 0; left -= chunks.back()) {
    chunks.push_back(std::min(left, std::uniform_int_distribution<int32_t>(1, chunk_max)(random)));
  }
  return chunks;
}

}  // namespace tokenmill::reference
