#include "models/llama.h"

#include <algorithm>
#include <string>
#include <vector>

#include "nn/layers.h"

namespace tokenmill {

namespace {

struct LlamaLayer {
  LlamaLayer(WeightLoader& loader, const std::string& prefix, int32_t window)
      : input_norm(loader, prefix + ".input_layernorm", loader.config().hidden_size),
        attention(loader, prefix + ".self_attn", window),
        post_attention_norm(loader, prefix + ".post_attention_layernorm", loader.config().hidden_size),
        mlp(loader, prefix + ".mlp") {}

  RmsNorm input_norm;
  Attention attention;
  RmsNorm post_attention_norm;
  GatedMlp mlp;
};

class LlamaModel final : public Model {
 public:
  explicit LlamaModel(WeightLoader& loader)
      : config_(loader.config()),
        packing_(loader.packing()),
        product_input_(loader.product_input()),
        embedding_(loader),
        rope_(config_.rope, config_.head_dim, config_.max_position) {
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
    rope_.take_table(measure, tokens);
    return measure.bytes_peak();
  }

  void forward(ForwardContext& context, Matrix x) const override {
    const LayerScratch scratch(context.workspace, config_, x.rows, product_input_);
    const RopeTable rope = rope_.take_table(context.workspace, x.rows);
    rope_.fill_table(context, rope);
    embedding_.lookup(context, x);
    for (size_t i = 0; i < std::min(layers_.size(), context.num_layers); ++i) {
      const LlamaLayer& layer = layers_[i];
      // x = x + Attention(RMSNorm(x))
      layer.attention.forward(
          context, context.kv.layer(static_cast<int64_t>(i)), scratch,
          {.x = x, .input_norm = layer.input_norm.view(), .rope = &rope, .add_to_out = true, .out = x});
      // x = x + Mlp(RMSNorm(x))
      layer.mlp.forward(context, scratch,
                        {.x = x, .input_norm = layer.post_attention_norm.view(), .add_to_out = true, .out = x});
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
  Rope rope_;
  std::vector<LlamaLayer> layers_;
  size_t weight_bytes_ = 0;
};

}  // namespace

std::unique_ptr<Model> load_llama(WeightLoader& loader) { return std::make_unique<LlamaModel>(loader); }

}  // namespace tokenmill
