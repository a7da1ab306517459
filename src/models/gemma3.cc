#include "models/gemma3.h"

#include <algorithm>
#include <string>
#include <vector>

#include "nn/layers.h"

namespace tokenmill {

namespace {

struct Gemma3Layer {
  Gemma3Layer(WeightLoader& loader, const std::string& prefix, int32_t window)
      : local(window > 0),
        input_norm(loader, prefix + ".input_layernorm", loader.config().hidden_size),
        attention(loader, prefix + ".self_attn", window),
        post_attention_norm(loader, prefix + ".post_attention_layernorm", loader.config().hidden_size),
        pre_feedforward_norm(loader, prefix + ".pre_feedforward_layernorm", loader.config().hidden_size),
        mlp(loader, prefix + ".mlp"),
        post_feedforward_norm(loader, prefix + ".post_feedforward_layernorm", loader.config().hidden_size) {}

  bool local;
  RmsNorm input_norm;
  Attention attention;
  RmsNorm post_attention_norm, pre_feedforward_norm;
  GatedMlp mlp;
  RmsNorm post_feedforward_norm;
};

class Gemma3Model final : public Model {
 public:
  explicit Gemma3Model(WeightLoader& loader)
      : config_(loader.config()),
        packing_(loader.packing()),
        product_input_(loader.product_input()),
        embedding_(loader),
        global_rope_(config_.rope, config_.head_dim, config_.max_position),
        local_rope_(config_.rope_local, config_.head_dim, config_.max_position) {
    for (size_t i = 0; i < config_.layer_window.size(); ++i) {
      layers_.emplace_back(loader, "layers." + std::to_string(i), config_.layer_window[i]);
    }
    weight_bytes_ = loader.weight_bytes();
  }

  const ModelConfig& config() const override { return config_; }
  Packing packing() const override { return packing_; }
  size_t weight_bytes() const override { return weight_bytes_; }

  size_t workspace_bytes(int64_t tokens) const override {
    Workspace measure;
    LayerScratch(measure, config_, tokens, product_input_);
    measure.take(tokens, config_.hidden_size);
    global_rope_.take_table(measure, tokens);
    local_rope_.take_table(measure, tokens);
    return measure.bytes_peak();
  }

  void forward(ForwardContext& context, Matrix x) const override {
    const LayerScratch scratch(context.workspace, config_, x.rows, product_input_);
    const Matrix branch = context.workspace.take(x.rows, config_.hidden_size);
    const RopeTable global = global_rope_.take_table(context.workspace, x.rows);
    const RopeTable local = local_rope_.take_table(context.workspace, x.rows);
    global_rope_.fill_table(context, global);
    local_rope_.fill_table(context, local);
    embedding_.lookup(context, x);
    for (size_t i = 0; i < std::min(layers_.size(), context.num_layers); ++i) {
      const Gemma3Layer& layer = layers_[i];
      // x = x + RMSNorm(Attention(RMSNorm(x)))
      layer.attention.forward(
          context, context.kv.layer(static_cast<int64_t>(i)), scratch,
          {.x = x, .input_norm = layer.input_norm.view(), .rope = layer.local ? &local : &global, .out = branch});
      context.backend.add_rms_norm(branch, layer.post_attention_norm.view(), x);
      // x = x + RMSNorm(Mlp(RMSNorm(x)))
      layer.mlp.forward(context, scratch, {.x = x, .input_norm = layer.pre_feedforward_norm.view(), .out = branch});
      context.backend.add_rms_norm(branch, layer.post_feedforward_norm.view(), x);
    }
  }

  void final_norm(ForwardContext& context, Matrix hidden, Matrix out) const override {
    embedding_.final_norm(context, hidden, out);
  }
  void logits(ForwardContext& context, Matrix hidden, Matrix out) const override {
    embedding_.logits(context, hidden, out);
  }

 private:
  ModelConfig config_;
  Packing packing_;
  DType product_input_;
  Embedding embedding_;
  Rope global_rope_, local_rope_;
  std::vector<Gemma3Layer> layers_;
  size_t weight_bytes_ = 0;
};

}  // namespace

std::unique_ptr<Model> load_gemma3(WeightLoader& loader) { return std::make_unique<Gemma3Model>(loader); }

}  // namespace tokenmill
