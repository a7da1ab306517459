#include "checkpoint/tensor_names.h"

namespace tokenmill {

namespace {

struct NamePair {
  std::string_view canonical, gguf;
};

constexpr NamePair kModelNames[] = {
    {"embed_tokens.weight", "token_embd.weight"},
    {"norm.weight", "output_norm.weight"},
    {"lm_head.weight", "output.weight"},
};

// Inside a layer, without ".weight" or ".bias".
constexpr NamePair kLayerNames[] = {
    {"input_layernorm", "attn_norm"},
    {"self_attn.q_proj", "attn_q"},
    {"self_attn.k_proj", "attn_k"},
    {"self_attn.v_proj", "attn_v"},
    {"self_attn.o_proj", "attn_output"},
    {"self_attn.q_norm", "attn_q_norm"},
    {"self_attn.k_norm", "attn_k_norm"},
    {"mlp.gate_proj", "ffn_gate"},
    {"mlp.up_proj", "ffn_up"},
    {"mlp.down_proj", "ffn_down"},
    {"pre_feedforward_layernorm", "ffn_norm"},
    {"post_feedforward_layernorm", "post_ffw_norm"},
};

std::string_view layer_part_to_gguf(std::string_view part, bool sandwich_norms) {
  if (part == "post_attention_layernorm") return sandwich_norms ? "post_attention_norm" : "ffn_norm";
  for (const NamePair& pair : kLayerNames) {
    if (part == pair.canonical) return pair.gguf;
  }
  return "";
}

void add_layer(const ModelConfig& config, const std::string& prefix, std::vector<TensorSpec>& out) {
  const int64_t hidden = config.hidden_size, inner = config.intermediate_size;
  const int64_t q_rows = config.num_heads * config.head_dim, kv_rows = config.num_kv_heads * config.head_dim;
  const auto linear = [&](const char* name, int64_t rows, int64_t cols, bool bias) {
    out.push_back({prefix + name + ".weight", {rows, cols}});
    if (bias) out.push_back({prefix + name + ".bias", {rows}});
  };
  const auto norm = [&](const char* name, int64_t size) { out.push_back({prefix + name + ".weight", {size}}); };
  norm("input_layernorm", hidden);
  linear("self_attn.q_proj", q_rows, hidden, config.qkv_bias);
  linear("self_attn.k_proj", kv_rows, hidden, config.qkv_bias);
  linear("self_attn.v_proj", kv_rows, hidden, config.qkv_bias);
  if (config.qk_norm) {
    norm("self_attn.q_norm", config.head_dim);
    norm("self_attn.k_norm", config.head_dim);
  }
  linear("self_attn.o_proj", hidden, q_rows, config.o_bias);
  norm("post_attention_layernorm", hidden);
  if (config.sandwich_norms) norm("pre_feedforward_layernorm", hidden);
  linear("mlp.gate_proj", inner, hidden, config.mlp_bias);
  linear("mlp.up_proj", inner, hidden, config.mlp_bias);
  linear("mlp.down_proj", hidden, inner, config.mlp_bias);
  if (config.sandwich_norms) norm("post_feedforward_layernorm", hidden);
}

}  // namespace

std::vector<TensorSpec> tensor_specs(const ModelConfig& config) {
  std::vector<TensorSpec> out;
  out.push_back({"embed_tokens.weight", {config.vocab_size, config.hidden_size}});
  for (int64_t i = 0; i < config.num_layers; ++i) add_layer(config, "layers." + std::to_string(i) + ".", out);
  out.push_back({"norm.weight", {config.hidden_size}});
  if (!config.tie_word_embeddings) out.push_back({"lm_head.weight", {config.vocab_size, config.hidden_size}});
  return out;
}

std::string_view canonical_from_hf(std::string_view name) {
  for (bool stripped = true; stripped;) {
    stripped = false;
    for (std::string_view prefix : {"model.", "language_model."}) {
      if (name.starts_with(prefix)) {
        name.remove_prefix(prefix.size());
        stripped = true;
      }
    }
  }
  return name;
}

std::string gguf_from_canonical(std::string_view name, bool sandwich_norms) {
  for (const NamePair& pair : kModelNames) {
    if (name == pair.canonical) return std::string(pair.gguf);
  }
  constexpr std::string_view kLayers = "layers.";
  const size_t number_end = name.find('.', kLayers.size());
  const size_t suffix = name.rfind('.');
  if (!name.starts_with(kLayers) || number_end == std::string_view::npos || suffix <= number_end) return "";
  const std::string_view part = name.substr(number_end + 1, suffix - number_end - 1);
  const std::string_view gguf = layer_part_to_gguf(part, sandwich_norms);
  if (gguf.empty()) return "";
  const std::string_view number = name.substr(kLayers.size(), number_end - kLayers.size());
  return "blk." + std::string(number) + "." + std::string(gguf) + std::string(name.substr(suffix));
}

bool is_norm(std::string_view canonical_name) { return canonical_name.ends_with("norm.weight"); }

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return out + "]";
}

}  // namespace tokenmill
