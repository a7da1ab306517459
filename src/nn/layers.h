// The layers transformer models are made of. Each holds its weights and is const after load; scratch is the caller's.
//
// T = tokens of the step, H = hidden size. Sources: attention with grouped queries (arXiv:2305.13245), gated MLP
// (arXiv:2002.05202), RMS norm (arXiv:1910.07467).
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "checkpoint/model_config.h"
#include "nn/forward_context.h"
#include "nn/rope.h"
#include "nn/weight_loader.h"
#include "ops/backend.h"

namespace tokenmill {

class RmsNorm {
 public:
  RmsNorm() = default;
  RmsNorm(WeightLoader& loader, const std::string& name, int64_t size);
  Norm view() const { return {weight_.data(), eps_}; }

 private:
  DeviceVector weight_;
  float eps_ = 0;
};

// Scratch that all layers of a pass share.
struct LayerScratch {
  // measured with a measuring Workspace at start, taken from the real one in every pass
  LayerScratch(Workspace& workspace, const ModelConfig& config, int64_t tokens, DType product_input);

  Matrix qkv;        // [T, (q_heads + 2 kv_heads) head_dim]
  Matrix attention;  // [T, q_heads head_dim]
  Matrix mlp;        // [T, intermediate_size]
};

// out (+)= W_o attend(rope(W_qkv norm(x)))
class Attention {
 public:
  // prefix: "layers.3.self_attn". window: 0 or the tokens this layer sees.
  Attention(WeightLoader& loader, const std::string& prefix, int32_t window);

  struct Args {
    Matrix x;  // [T, H]
    Norm input_norm;
    const RopeTable* rope = nullptr;
    bool add_to_out = false;
    Matrix out;  // [T, H]; may be x
  };
  void forward(ForwardContext& context, const KvLayer& kv, const LayerScratch& scratch, const Args& args) const;

 private:
  std::unique_ptr<Weight> qkv_, output_;
  bool qk_norm_ = false;
  RmsNorm q_norm_, k_norm_;
  int32_t q_heads_, head_dim_, window_;
  float scale_, softcap_;
};

// out (+)= W_down (act(W_gate norm(x)) * (W_up norm(x)))
class GatedMlp {
 public:
  // prefix: "layers.3.mlp"
  GatedMlp(WeightLoader& loader, const std::string& prefix);

  struct Args {
    Matrix x;  // [T, H]
    Norm input_norm;
    bool add_to_out = false;
    Matrix out;  // [T, H]; may be x
  };
  void forward(ForwardContext& context, const LayerScratch& scratch, const Args& args) const;

 private:
  std::unique_ptr<Weight> gate_, up_, down_;
  Activation activation_;
};

// Ids to vectors at one end, vectors to logits at the other. A tied table is packed once and serves both.
class Embedding {
 public:
  explicit Embedding(WeightLoader& loader);

  void lookup(ForwardContext& context, Matrix hidden) const;
  void final_norm(ForwardContext& context, Matrix hidden, Matrix out) const;
  void logits(ForwardContext& context, Matrix hidden, Matrix out) const;

 private:
  std::unique_ptr<Weight> table_, head_;  // head_ is null where tied
  RmsNorm norm_;
  float scale_, softcap_;
};

// "silu" and the tanh form of GELU under its names. Throws Error(kUnsupported) naming hidden_act for others.
Activation activation_of(const std::string& hidden_act);

}  // namespace tokenmill
