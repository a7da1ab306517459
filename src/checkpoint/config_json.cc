#include "checkpoint/config_json.h"

#include <algorithm>
#include <cmath>

#include "checkpoint/architectures.h"
#include "checkpoint/config_limits.h"
#include "checkpoint/json_file.h"
#include "checkpoint/load_error.h"
#include "checkpoint/rope_json.h"

namespace tokenmill {

using nlohmann::json;

namespace {

constexpr int64_t kDefaultWindow = 4096;    // of every transformers class that has one
constexpr int64_t kDefaultPattern = 6;      // Gemma 3: every 6th layer is global
constexpr int64_t kDefaultFullLayers = 28;  // Qwen: max_window_layers

const Architecture& read_architecture(const JsonObject& config) {
  const json* names = config.find("architectures");
  if (names == nullptr || !names->is_array() || names->empty()) {
    config.fail("architectures", "must be a list with the model's class, one of " + known_architecture_list());
  }
  for (const json& name : *names) {
    if (!name.is_string()) config.fail("architectures", "must be a list of strings");
    if (const Architecture* row = find_architecture(name.get<std::string>())) return *row;
  }
  config.unsupported("architectures", "unknown architecture; the known ones are " + known_architecture_list());
}

void read_shape(const JsonObject& config, const Architecture& row, ModelConfig& out) {
  out.hidden_size = config.required_integer("hidden_size", 1, kMaxHidden);
  out.intermediate_size = config.required_integer("intermediate_size", 1, kMaxIntermediate);
  out.num_layers = config.required_integer("num_hidden_layers", 1, kMaxLayers);
  out.vocab_size = row.default_vocab_size > 0 ? config.integer_or("vocab_size", 1, kMaxVocab, row.default_vocab_size)
                                              : config.required_integer("vocab_size", 1, kMaxVocab);
  out.num_heads = row.default_heads > 0 ? config.integer_or("num_attention_heads", 1, kMaxHeads, row.default_heads)
                                        : config.required_integer("num_attention_heads", 1, kMaxHeads);
  // null means "as many as heads" in every class; only a missing key means the class's default.
  const bool kv_absent = !config.contains("num_key_value_heads") && row.default_kv_heads > 0;
  out.num_kv_heads =
      config.integer_or("num_key_value_heads", 1, kMaxHeads, kv_absent ? row.default_kv_heads : out.num_heads);
  if (const auto head_dim = config.integer("head_dim", 1, kMaxHidden)) {
    out.head_dim = *head_dim;
  } else if (row.default_head_dim > 0) {
    out.head_dim = row.default_head_dim;
  } else {
    if (out.hidden_size % out.num_heads != 0) {
      config.fail("hidden_size", "must be a multiple of num_attention_heads where head_dim is not given");
    }
    out.head_dim = out.hidden_size / out.num_heads;
  }
  out.max_position = config.integer_or("max_position_embeddings", 1, kMaxPosition, row.default_max_position);
  out.rms_norm_eps = config.number_or("rms_norm_eps", kMinEps, kMaxEps, 1e-6);
}

void read_activation(const JsonObject& config, const Architecture& row, ModelConfig& out) {
  const char* key = row.gemma && config.find("hidden_activation") != nullptr ? "hidden_activation" : "hidden_act";
  const std::string name = config.text(key).value_or(row.gemma ? "gelu_pytorch_tanh" : "silu");
  out.hidden_act = canonical_activation(name);
  if (out.hidden_act.empty()) config.unsupported(key, "the activations that are supported are silu, gelu_pytorch_tanh");
}

void read_attention(const JsonObject& config, const Architecture& row, ModelConfig& out) {
  const bool attention_bias = config.boolean_or("attention_bias", false);
  if (row.attention_bias == BiasRule::kNever && attention_bias) {
    config.unsupported("attention_bias", std::string("biases are not supported for ") + row.name);
  }
  out.qkv_bias =
      row.attention_bias == BiasRule::kQkvAlways || (row.attention_bias == BiasRule::kFromConfig && attention_bias);
  out.o_bias = row.attention_bias == BiasRule::kFromConfig && attention_bias;
  const bool mlp_bias = config.boolean_or("mlp_bias", false);
  if (mlp_bias && !row.mlp_bias_key) {
    config.unsupported("mlp_bias", std::string("biases are not supported for ") + row.name);
  }
  out.mlp_bias = mlp_bias;
  out.qk_norm = row.qk_norm;
  double scale_base = static_cast<double>(out.head_dim);
  if (row.gemma) scale_base = config.number_or("query_pre_attn_scalar", 1e-3, 1e6, 256);
  out.attention_scale = 1 / std::sqrt(scale_base);
  for (const char* key : {"attn_logit_softcapping", "final_logit_softcapping"}) {
    const auto cap = config.number(key, 1e-3, 1e6);
    if (!cap) continue;
    if (!row.gemma) config.unsupported(key, std::string("soft caps are not supported for ") + row.name);
    (key[0] == 'a' ? out.attention_softcap : out.final_softcap) = *cap;
  }
}

// The window of the sliding layers; 0: none.
int64_t read_window(const JsonObject& config, const Architecture& row) {
  if (row.window == WindowRule::kNone) return 0;
  if (row.window == WindowRule::kUpperLayers && !config.boolean_or("use_sliding_window", false)) return 0;
  if (!config.contains("sliding_window")) return kDefaultWindow;
  return config.integer_or("sliding_window", 1, kMaxPosition, 0);  // null: none
}

int64_t read_pattern(const JsonObject& config) {
  for (const char* key : {"sliding_window_pattern", "_sliding_window_pattern"}) {
    if (const auto pattern = config.integer(key, 1, kMaxLayers)) return *pattern;
  }
  return kDefaultPattern;
}

void read_layer_windows(const JsonObject& config, const Architecture& row, ModelConfig& out) {
  const int64_t window = read_window(config, row);
  const auto layers = static_cast<size_t>(out.num_layers);
  out.layer_window.assign(layers, 0);
  if (const json* types = config.find("layer_types")) {
    if (!types->is_array() || types->size() < layers) {
      config.fail("layer_types", "must be a list with an entry for each of the " + std::to_string(layers) + " layers");
    }
    for (size_t i = 0; i < layers; ++i) {
      const json& type = (*types)[i];
      if (type == "full_attention") continue;
      if (type != "sliding_attention") {
        config.unsupported("layer_types", "the layer types that are supported are full_attention, sliding_attention");
      }
      if (row.window == WindowRule::kNone) {
        config.unsupported("layer_types", std::string("sliding windows are not supported for ") + row.name);
      }
      out.layer_window[i] = static_cast<int32_t>(window);
    }
    return;
  }
  const int64_t pattern = row.window == WindowRule::kPattern ? read_pattern(config) : 0;
  const int64_t full_layers = row.window == WindowRule::kUpperLayers
                                  ? config.integer_or("max_window_layers", 0, kMaxPosition, kDefaultFullLayers)
                                  : 0;
  for (size_t i = 0; i < layers; ++i) {
    const auto layer = static_cast<int64_t>(i);
    const bool slides = row.window == WindowRule::kAllLayers ||
                        (row.window == WindowRule::kUpperLayers && layer >= full_layers) ||
                        (row.window == WindowRule::kPattern && (layer + 1) % pattern != 0);
    if (slides) out.layer_window[i] = static_cast<int32_t>(window);
  }
}

void refuse_unsupported(const JsonObject& config) {
  for (const char* key : {"quantization_config", "compression_config"}) {
    if (config.find(key) != nullptr) {
      config.unsupported(key,
                         "quantised Hugging Face checkpoints are not supported yet; use the bf16, f16 or f32 original "
                         "or a GGUF file");
    }
  }
  for (const char* key : {"use_bidirectional_attention", "rope_interleaved", "is_encoder_decoder"}) {
    const json* value = config.find(key);
    if (value != nullptr && *value != json(false)) config.unsupported(key, "is not supported");
  }
}

// True where the file names a type.
bool read_dtype(const JsonObject& config, ModelConfig& out) {
  for (const char* key : {"dtype", "torch_dtype"}) {
    auto name = config.text(key);
    if (!name || *name == "auto") continue;
    if (name->starts_with("torch.")) name->erase(0, 6);
    if (*name == "float32" || *name == "float") {
      out.dtype = WeightType::kF32;
    } else if (*name == "float16" || *name == "half") {
      out.dtype = WeightType::kF16;
    } else if (*name == "bfloat16") {
      out.dtype = WeightType::kBF16;
    } else {
      config.unsupported(key, "the types that are supported are float32, float16, bfloat16");
    }
    return true;
  }
  return false;
}

void add_token_ids(const JsonObject& config, ModelConfig& out) {
  for (int64_t id : config.integers("eos_token_id", 0, INT32_MAX, kMaxEosIds)) {
    const auto eos = static_cast<int32_t>(id);
    auto& ids = out.eos_token_ids;
    if (std::find(ids.begin(), ids.end(), eos) == ids.end()) ids.push_back(eos);
  }
  if (!out.bos_token_id) {
    if (const auto bos = config.integer("bos_token_id", 0, INT32_MAX)) out.bos_token_id = static_cast<int32_t>(*bos);
  }
}

// The old spelling in an override reaches a config.json of the new one.
void translate_override(json& config, const json& overrides) {
  if (overrides.contains("torch_dtype") && !overrides.contains("dtype")) config.erase("dtype");
  auto rope = config.find("rope_parameters");
  if (rope == config.end() || !rope->is_object() || overrides.contains("rope_parameters")) return;
  const bool nested = rope->contains("full_attention") && (*rope)["full_attention"].is_object();
  json& target = nested ? (*rope)["full_attention"] : *rope;
  if (overrides.contains("rope_scaling")) {
    json replaced = overrides["rope_scaling"].is_object() ? overrides["rope_scaling"] : json::object();
    if (!replaced.contains("rope_theta") && target.contains("rope_theta"))
      replaced["rope_theta"] = target["rope_theta"];
    target = std::move(replaced);
  }
  if (overrides.contains("rope_theta")) target["rope_theta"] = overrides["rope_theta"];
  if (overrides.contains("rope_local_base_freq") && nested) {
    (*rope)["sliding_attention"]["rope_theta"] = overrides["rope_local_base_freq"];
  }
}

void merge_override(json& config, const json& overrides) {
  translate_override(config, overrides);
  for (const auto& [key, value] : overrides.items()) {
    auto it = config.find(key);
    if (key == "text_config" && value.is_object() && it != config.end() && it->is_object()) {
      translate_override(*it, value);
      it->update(value);
    } else {
      config[key] = value;
    }
  }
}

}  // namespace

void apply_config_overrides(json& config, const std::string& override_json) {
  if (override_json.empty()) return;
  try {
    merge_override(config, parse_json_object(override_json, "json_model_override_args"));
  } catch (const json::exception& e) {  // a value of config.json that should be an object is not
    fail_load("json_model_override_args", "does not fit config.json (" + quote(e.what()) + ")");
  }
}

JsonConfig parse_model_config(const json& root, const std::string& file) {
  const JsonObject outer(root, file);
  const Architecture* row = &read_architecture(outer);
  JsonConfig out;
  ModelConfig& config = out.config;
  refuse_unsupported(outer);
  const bool wrapped = row->text_architecture != nullptr;
  const JsonObject inner = wrapped ? outer.child("text_config") : outer;
  if (wrapped) {
    row = find_architecture(row->text_architecture);
    refuse_unsupported(inner);
  }
  config.architecture = row->name;
  read_shape(inner, *row, config);
  read_activation(inner, *row, config);
  read_attention(inner, *row, config);
  read_layer_windows(inner, *row, config);
  read_rope(inner, *row, config);
  // The wrapper's own setting wins where it has one, as in transformers.
  config.tie_word_embeddings =
      outer.boolean_or("tie_word_embeddings", inner.boolean_or("tie_word_embeddings", row->tie_default));
  config.norm_plus_one = row->gemma;
  config.sandwich_norms = row->gemma;
  config.embedding_scale = row->gemma ? std::sqrt(static_cast<double>(config.hidden_size)) : 1;
  out.has_dtype = read_dtype(inner, config) || (wrapped && read_dtype(outer, config));
  add_token_ids(outer, config);
  if (wrapped) add_token_ids(inner, config);
  check_config(config, file, kHuggingFaceKeys);
  return out;
}

void add_generation_config(ModelConfig& config, const json& generation, const std::string& file) {
  add_token_ids(JsonObject(generation, file), config);
  check_config(config, file, kHuggingFaceKeys);
}

}  // namespace tokenmill
