#include "nn/layers.h"

#include "tokenmill/error.h"

namespace tokenmill {

Activation activation_of(const std::string& hidden_act) {
  if (hidden_act == "silu" || hidden_act == "swish") return Activation::kSilu;
  if (hidden_act == "gelu_pytorch_tanh" || hidden_act == "gelu_new") return Activation::kGeluTanh;
  throw Error(ErrorKind::kUnsupported,
              "hidden_act '" + hidden_act + "' is not supported; known are silu and gelu_pytorch_tanh.");
}

RmsNorm::RmsNorm(WeightLoader& loader, const std::string& name, int64_t size)
    : weight_(loader.norm(name, size)), eps_(static_cast<float>(loader.config().rms_norm_eps)) {}

LayerScratch::LayerScratch(Workspace& workspace, const ModelConfig& config, int64_t tokens, DType product_input)
    : qkv(workspace.take(tokens, (config.num_heads + 2 * config.num_kv_heads) * config.head_dim)),
      attention(workspace.take(tokens, config.num_heads * config.head_dim, product_input)),
      mlp(workspace.take(tokens, config.intermediate_size, product_input)) {}

Attention::Attention(WeightLoader& loader, const std::string& prefix, int32_t window) : window_(window) {
  const ModelConfig& config = loader.config();
  const int64_t q_size = config.num_heads * config.head_dim, kv_size = config.num_kv_heads * config.head_dim;
  q_heads_ = static_cast<int32_t>(config.num_heads);
  head_dim_ = static_cast<int32_t>(config.head_dim);
  scale_ = static_cast<float>(config.attention_scale);
  softcap_ = static_cast<float>(config.attention_softcap);
  qkv_ = loader.linear({{prefix + ".q_proj", q_size}, {prefix + ".k_proj", kv_size}, {prefix + ".v_proj", kv_size}},
                       config.hidden_size, config.qkv_bias);
  output_ = loader.linear({{prefix + ".o_proj", config.hidden_size}}, q_size, config.o_bias);
  qk_norm_ = config.qk_norm;
  if (!qk_norm_) return;
  q_norm_ = RmsNorm(loader, prefix + ".q_norm", config.head_dim);
  k_norm_ = RmsNorm(loader, prefix + ".k_norm", config.head_dim);
}

void Attention::forward(ForwardContext& context, const KvLayer& kv, const LayerScratch& scratch,
                        const Args& args) const {
  Backend& ops = context.backend;
  const Norm q_norm = q_norm_.view(), k_norm = k_norm_.view();
  ops.linear({.x = args.x, .input_norm = &args.input_norm, .weight = qkv_.get(), .out = scratch.qkv});
  ops.rope_kv_write({.qkv = scratch.qkv,
                     .q_heads = q_heads_,
                     .rope = args.rope,
                     .q_norm = qk_norm_ ? &q_norm : nullptr,
                     .k_norm = qk_norm_ ? &k_norm : nullptr,
                     .kv = kv,
                     .attention_follows = true});
  Matrix q = scratch.qkv;
  q.cols = static_cast<int64_t>(q_heads_) * head_dim_;
  ops.attention({.q = q,
                 .q_heads = q_heads_,
                 .kv = kv,
                 .scale = scale_,
                 .softcap = softcap_,
                 .window = window_,
                 .out = scratch.attention});
  ops.linear({.x = scratch.attention, .weight = output_.get(), .add_to_out = args.add_to_out, .out = args.out});
}

GatedMlp::GatedMlp(WeightLoader& loader, const std::string& prefix)
    : activation_(activation_of(loader.config().hidden_act)) {
  const ModelConfig& config = loader.config();
  const int64_t inner = config.intermediate_size, hidden = config.hidden_size;
  gate_ = loader.linear({{prefix + ".gate_proj", inner}}, hidden, config.mlp_bias);
  up_ = loader.linear({{prefix + ".up_proj", inner}}, hidden, config.mlp_bias);
  down_ = loader.linear({{prefix + ".down_proj", hidden}}, inner, config.mlp_bias);
}

void GatedMlp::forward(ForwardContext& context, const LayerScratch& scratch, const Args& args) const {
  context.backend.gated_linear({.x = args.x,
                                .input_norm = &args.input_norm,
                                .gate = gate_.get(),
                                .up = up_.get(),
                                .activation = activation_,
                                .out = scratch.mlp});
  context.backend.linear({.x = scratch.mlp, .weight = down_.get(), .add_to_out = args.add_to_out, .out = args.out});
}

Embedding::Embedding(WeightLoader& loader) {
  const ModelConfig& config = loader.config();
  table_ = loader.linear({{"embed_tokens", config.vocab_size}}, config.hidden_size, false);
  if (!config.tie_word_embeddings) {
    head_ = loader.linear({{"lm_head", config.vocab_size}}, config.hidden_size, false);
  }
  norm_ = RmsNorm(loader, "norm", config.hidden_size);
  scale_ = static_cast<float>(config.embedding_scale);
  softcap_ = static_cast<float>(config.final_softcap);
}

void Embedding::lookup(ForwardContext& context, Matrix hidden) const {
  context.backend.embed(context.batch.tokens, *table_, scale_, hidden);
}

void Embedding::final_norm(ForwardContext& context, Matrix hidden, Matrix out) const {
  context.backend.rms_norm(hidden, norm_.view(), out);
}

void Embedding::logits(ForwardContext& context, Matrix hidden, Matrix out) const {
  const Weight& head = head_ ? *head_ : *table_;
  context.backend.linear({.x = hidden, .weight = &head, .fine_inputs = true, .out = out});
  if (softcap_ > 0) context.backend.softcap(out, softcap_);
}

}  // namespace tokenmill
