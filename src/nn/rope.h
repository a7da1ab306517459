// Rotary position embedding: inverse frequencies of every scaling rule, and the step's cos/sin table.
//
// The formulas are those of transformers' modeling_rope_utils (default, linear, dynamic, llama3, yarn), in its fp32
// steps.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "checkpoint/model_config.h"
#include "nn/forward_context.h"
#include "ops/backend.h"

namespace tokenmill {

class Rope {
 public:
  // rotary_dim: even, at most 256. max_position: the model's context, where the config names no original one.
  // Throws Error(kValue) when the config's numbers make no frequencies.
  Rope(const RopeConfig& config, int64_t rotary_dim, int64_t max_position);

  // Scratch of a step's table: cos and sin [tokens, rotary_dim / 2].
  RopeTable take_table(Workspace& workspace, int64_t tokens) const;
  void fill_table(ForwardContext& context, const RopeTable& table) const;

  // The frequencies that position uses, [rotary_dim / 2]. The same for all positions but with dynamic scaling, where
  // position p has those of sequence length max(original, p + 1): what transformers uses when p is the last token. So a
  // token's rotation depends on its position only, never on how long its sequence has become since.
  std::span<const float> inverse_frequencies() const { return inv_freq_; }
  void inverse_frequencies_at(int64_t position, std::span<float> out) const;
  float attention_factor() const { return attention_factor_; }  // multiplies cos and sin (yarn)

 private:
  RopeConfig config_;
  int64_t rotary_dim_, original_max_position_;
  std::vector<float> inv_freq_;
  float attention_factor_ = 1;
};

}  // namespace tokenmill
