// A backend whose steps overlap, as a device's do, over one whose steps do not: the order of calls that
// Backend::overlaps asks for, without a device. Tokens lie in slots and their values are told by collect_samples()
// only.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "base/check.h"
#include "util/forwarding_backend.h"

namespace tokenmill::testing {

class BesideBackend final : public ForwardingBackend {
 public:
  explicit BesideBackend(std::unique_ptr<Backend> inner) : ForwardingBackend(std::move(inner)) {}

  void plan(const Batch& batch, int32_t page_size) override {
    batch_tokens_ = batch.tokens.data();
    planned_ = batch;
    for (const SlotToken& token : batch.slot_tokens) {
      TM_CHECK(batch.tokens.at(static_cast<size_t>(token.token_index)) == 0);
      planned_.tokens.at(static_cast<size_t>(token.token_index)) = slots_.at(static_cast<size_t>(token.slot));
    }
    planned_.slot_tokens.clear();
    inner().plan(planned_, page_size);
  }
  void embed(std::span<const int32_t> ids, const Weight& table, float scale, Matrix out) override {
    const bool of_batch = ids.data() == batch_tokens_ && ids.size() == planned_.tokens.size();
    inner().embed(of_batch ? std::span<const int32_t>(planned_.tokens) : ids, table, scale, out);
  }

  void sample(Matrix, std::span<const SamplingRow>, std::span<SampledToken>) override {
    throw DeviceError("sample() of a backend whose steps overlap.");
  }
  bool overlaps() const override { return true; }
  void launch_sample(Matrix logits, std::span<const SamplingRow> rows, int32_t first_slot, int32_t num_slots) override {
    TM_CHECK(first_slot == static_cast<int32_t>(drawn_.size()) || first_slot == 0);
    if (first_slot == 0) {  // the sampling before may have failed half-way
      drawn_.clear();
      slots_.assign(static_cast<size_t>(num_slots), 0);
    }
    TM_CHECK(slots_.size() == static_cast<size_t>(num_slots));
    drawn_.resize(static_cast<size_t>(first_slot) + rows.size());
    const std::span<SampledToken> drawn = std::span(drawn_).subspan(static_cast<size_t>(first_slot));
    inner().sample(logits, rows, drawn);
    for (size_t i = 0; i < drawn.size(); ++i) {
      if (!drawn[i].invalid) slots_[static_cast<size_t>(first_slot) + i] = drawn[i].token;
    }
  }
  void collect_samples(std::span<SampledToken> out) override {
    if (out.empty()) return;
    TM_CHECK(out.size() == drawn_.size());
    std::move(drawn_.begin(), drawn_.end(), out.begin());
    drawn_.clear();
  }

 private:
  Batch planned_;                          // with the tokens of the slots
  const int32_t* batch_tokens_ = nullptr;  // of the batch as it was given
  std::vector<int32_t> slots_;             // of the step whose sampling was launched last
  std::vector<SampledToken> drawn_;        // of launches that have not been collected
};

}  // namespace tokenmill::testing
