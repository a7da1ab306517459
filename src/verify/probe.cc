#include "verify/probe.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/check.h"

namespace tokenmill {

namespace {

// Logits are copied to the host this many rows at a time: 33 MB at a vocabulary of 262,144.
constexpr size_t kLogitsRows = 32;

}  // namespace

int32_t argmax(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

float logprob_of(std::span<const float> logits, int32_t id) {
  TM_CHECK(id >= 0 && static_cast<size_t>(id) < logits.size());
  const float best = *std::max_element(logits.begin(), logits.end());
  double total = 0;
  for (const float logit : logits) total += std::exp(logit - best);
  return static_cast<float>(static_cast<double>(logits[static_cast<size_t>(id)]) - best - std::log(total));
}

Probe::Probe(std::unique_ptr<Backend> backend, std::unique_ptr<Model> model, const ProbeOptions& options)
    : options_(options), lengths_(static_cast<size_t>(options.num_sequences)) {
  blocks_per_sequence_ = static_cast<int32_t>((options.tokens_max + options.page_size - 1) / options.page_size);
  const RunnerOptions runner{.page_size = options.page_size,
                             .num_blocks = blocks_per_sequence_ * static_cast<int32_t>(options.num_sequences),
                             .max_tokens_per_step = std::max(options.chunk_tokens, options.num_sequences),
                             .max_rows = static_cast<int64_t>(kLogitsRows)};
  runner_ = std::make_unique<ModelRunner>(std::move(backend), std::move(model), runner);
}

void Probe::add_row(const Piece& piece) {
  const auto& [sequence, ids] = piece;
  int64_t& length = lengths_.at(static_cast<size_t>(sequence));
  TM_CHECK(length + static_cast<int64_t>(ids.size()) <= int64_t{blocks_per_sequence_} * options_.page_size);
  BatchRow row{.sequence_id = static_cast<uint64_t>(sequence),
               .q_len = static_cast<int32_t>(ids.size()),
               .kv_len = static_cast<int32_t>(length + static_cast<int64_t>(ids.size())),
               .token_begin = static_cast<int32_t>(batch_.tokens.size()),
               .block_begin = static_cast<int32_t>(batch_.block_tables.size()),
               .num_blocks = 0};
  row.num_blocks = (row.kv_len + options_.page_size - 1) / options_.page_size;
  for (int32_t b = 0; b < row.num_blocks; ++b) {
    batch_.block_tables.push_back(static_cast<int32_t>(sequence) * blocks_per_sequence_ + b);
  }
  for (const int32_t id : ids) {
    batch_.tokens.push_back(id);
    batch_.positions.push_back(static_cast<int32_t>(length++));
  }
  batch_.rows.push_back(row);
}

ModelRunner::InFlight Probe::run(std::span<const Piece> pieces, size_t offset, const OnLogits& on_logits) {
  const uint64_t step_number = batch_.step + 1;
  batch_ = Batch{};
  batch_.step = step_number;
  batch_.copies = std::exchange(copies_, {});
  for (const Piece& piece : pieces) add_row(piece);
  ModelRunner::InFlight step = runner_->forward(batch_);
  if (!on_logits) return step;
  const size_t vocab = static_cast<size_t>(runner_->model().config().vocab_size);
  std::vector<int32_t> indices(batch_.tokens.size());
  std::iota(indices.begin(), indices.end(), 0);
  for (size_t first = 0; first < indices.size(); first += kLogitsRows) {
    const size_t count = std::min(kLogitsRows, indices.size() - first);
    const std::vector<float> logits = runner_->logits(step, std::span(indices).subspan(first, count));
    for (size_t i = 0; i < count; ++i) on_logits(offset + first + i, std::span(logits).subspan(i * vocab, vocab));
  }
  return step;
}

std::vector<float> Probe::feed(int64_t sequence, std::span<const int32_t> ids, const OnLogits& on_logits) {
  TM_CHECK(!ids.empty());
  const size_t chunk = static_cast<size_t>(options_.chunk_tokens);
  for (size_t first = 0;; first += chunk) {
    const Piece piece{sequence, ids.subspan(first, std::min(chunk, ids.size() - first))};
    const ModelRunner::InFlight step = run(std::span(&piece, 1), first, on_logits);
    if (first + piece.ids.size() < ids.size()) continue;
    const int32_t last = static_cast<int32_t>(piece.ids.size()) - 1;
    return runner_->hidden_states(step, std::span(&last, 1));
  }
}

void Probe::decode(std::span<const Next> next, const OnLogits& on_logits) {
  std::vector<Piece> pieces;
  for (const Next& one : next) pieces.push_back({one.sequence, std::span(&one.token, 1)});
  run(pieces, 0, on_logits);
}

void Probe::step(std::span<const Piece> pieces, const OnLogits& on_logits) { run(pieces, 0, on_logits); }

void Probe::copy_prefix(int64_t source, int64_t target, int64_t length) {
  TM_CHECK(source != target && length <= lengths_.at(static_cast<size_t>(source)));
  const int32_t page = options_.page_size;
  for (int32_t block = 0; int64_t{block} * page < length; ++block) {
    copies_.push_back({.source_block = static_cast<int32_t>(source) * blocks_per_sequence_ + block,
                       .target_block = static_cast<int32_t>(target) * blocks_per_sequence_ + block,
                       .num_rows = static_cast<int32_t>(std::min<int64_t>(page, length - int64_t{block} * page))});
  }
  lengths_.at(static_cast<size_t>(target)) = length;
}

void Probe::truncate(int64_t sequence, int64_t length) {
  int64_t& held = lengths_.at(static_cast<size_t>(sequence));
  TM_CHECK(length >= 0 && length <= held);
  held = length;
}

}  // namespace tokenmill
