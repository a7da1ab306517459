// GGUF metadata -> ModelConfig. Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "checkpoint/architectures.h"
#include "checkpoint/config_limits.h"
#include "checkpoint/gguf_checkpoint.h"
#include "checkpoint/load_error.h"

namespace tokenmill {

namespace {

constexpr double kGemmaLocalTheta = 10000;  // not in the metadata of most files
constexpr int64_t kGemmaPattern = 6;
constexpr int64_t kGemma27BLayers = 62;  // the size whose query scale is not the head size's

// A float32 as the decimal it was rounded from: 9.99999975e-06 is 1e-05.
double shortest_decimal(double value) {
  char text[64];
  const auto end = std::to_chars(text, text + sizeof text, static_cast<float>(value));
  double out = value;
  std::from_chars(text, end.ptr, out);
  return out;
}

std::string plain(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

// Keys under "<architecture>.", checked like those of config.json.
class Metadata {
 public:
  Metadata(const GgufFile& file, std::string prefix) : file_(file), prefix_(std::move(prefix)) {}

  std::string key(std::string_view name) const { return prefix_ + std::string(name); }
  bool contains(std::string_view name) const { return file_.find(key(name)) != nullptr; }
  const GgufFile& file() const { return file_; }

  [[noreturn]] void fail(std::string_view name, const std::string& rule, const std::string& value) const {
    fail_load(file_.path(), "key " + quote(key(name)) + " " + rule + ", but is " + value);
  }
  [[noreturn]] void unsupported(std::string_view name, const std::string& why) const {
    fail_load(file_.path(), "key " + quote(key(name)) + ": " + why, ErrorKind::kUnsupported);
  }

  // An integer, or a list of one integer a layer where all are equal.
  std::optional<int64_t> integer(std::string_view name, int64_t min, int64_t max) const {
    const GgufValue* value = file_.find(key(name));
    if (value == nullptr) return std::nullopt;
    int64_t number;
    if (value->is_array) {
      const auto list = *file_.get_ints(key(name));
      if (list.empty()) fail(name, "must not be empty", "an empty list");
      if (std::any_of(list.begin(), list.end(), [&](int64_t entry) { return entry != list[0]; })) {
        unsupported(name, "values that differ from layer to layer are not supported");
      }
      number = list[0];
    } else {
      number = *file_.get_int(key(name));
    }
    if (number < min || number > max) {
      fail(name, "must be an integer from " + std::to_string(min) + " to " + std::to_string(max),
           std::to_string(number));
    }
    return number;
  }
  int64_t required_integer(std::string_view name, int64_t min, int64_t max) const {
    const auto value = integer(name, min, max);
    if (!value) fail(name, "must be an integer from " + std::to_string(min) + " to " + std::to_string(max), "missing");
    return *value;
  }
  std::optional<double> number(std::string_view name, double min, double max) const {
    const auto stored = file_.get_float(key(name));
    if (!stored) return std::nullopt;
    if (!std::isfinite(*stored)) fail(name, "must be finite", plain(*stored));
    const double value = shortest_decimal(*stored);
    if (!(value >= min && value <= max)) {
      fail(name, "must be a number from " + plain(min) + " to " + plain(max), plain(value));
    }
    return value;
  }

 private:
  const GgufFile& file_;
  std::string prefix_;
};

void read_vocab(const Metadata& meta, ModelConfig& out) {
  const GgufFile& file = meta.file();
  const GgufTensor* embedding = file.find_tensor("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2) {
    fail_load(file.path(), "tensor 'token_embd.weight' is missing or no matrix; convert the model again");
  }
  out.vocab_size = embedding->shape[0];
  if (out.vocab_size > kMaxVocab) {
    fail_load(file.path(), "tensor 'token_embd.weight' must have at most " + std::to_string(kMaxVocab) +
                               " rows, but has " + std::to_string(out.vocab_size));
  }
  // The embedding may be padded past the vocabulary, never the other way round.
  const GgufValue* tokens = file.find("tokenizer.ggml.tokens");
  if (tokens != nullptr && tokens->is_array && tokens->count > static_cast<uint64_t>(out.vocab_size)) {
    fail_load(file.path(), "key 'tokenizer.ggml.tokens' has " + std::to_string(tokens->count) +
                               " entries, but tensor 'token_embd.weight' has " + std::to_string(out.vocab_size) +
                               " rows; convert the model again");
  }
}

void read_shape(const Metadata& meta, ModelConfig& out) {
  out.hidden_size = meta.required_integer("embedding_length", 1, kMaxHidden);
  out.intermediate_size = meta.required_integer("feed_forward_length", 1, kMaxIntermediate);
  out.num_layers = meta.required_integer("block_count", 1, kMaxLayers);
  out.num_heads = meta.required_integer("attention.head_count", 1, kMaxHeads);
  out.num_kv_heads = meta.integer("attention.head_count_kv", 1, kMaxHeads).value_or(out.num_heads);
  out.head_dim = meta.integer("attention.key_length", 1, kMaxHidden).value_or(out.hidden_size / out.num_heads);
  const int64_t value_dim = meta.integer("attention.value_length", 1, kMaxHidden).value_or(out.head_dim);
  if (value_dim != out.head_dim) meta.unsupported("attention.value_length", "must equal attention.key_length");
  const int64_t rotary = meta.integer("rope.dimension_count", 1, kMaxHidden).value_or(out.head_dim);
  if (rotary != out.head_dim) {
    meta.unsupported("rope.dimension_count", "rotating a part of the head is not supported for this architecture");
  }
  out.max_position = meta.required_integer("context_length", 1, kMaxPosition);
  const auto eps = meta.number("attention.layer_norm_rms_epsilon", kMinEps, kMaxEps);
  if (!eps) meta.fail("attention.layer_norm_rms_epsilon", "must be a number", "missing");
  out.rms_norm_eps = *eps;
  read_vocab(meta, out);
}

std::vector<float> read_divisors(const Metadata& meta, const ModelConfig& config) {
  const GgufFile& file = meta.file();
  for (const char* name : {"rope_factors_long.weight", "rope_factors_short.weight"}) {
    if (file.find_tensor(name) != nullptr) {
      fail_load(file.path(), std::string("tensor '") + name + "': longrope scaling is not supported",
                ErrorKind::kUnsupported);
    }
  }
  const GgufTensor* tensor = file.find_tensor("rope_freqs.weight");
  if (tensor == nullptr) return {};
  std::vector<float> out(static_cast<size_t>(config.head_dim / 2));
  const bool fits =
      tensor->type == 0 && tensor->elements == out.size() && tensor->data.size() == out.size() * sizeof(float);
  if (!fits) {
    fail_load(file.path(), "tensor 'rope_freqs.weight' must be F32 of " + std::to_string(out.size()) +
                               " values; convert the model again");
  }
  std::memcpy(out.data(), tensor->data.data(), tensor->data.size());
  for (float divisor : out) {
    if (!(divisor > 0) || !std::isfinite(divisor)) {
      fail_load(file.path(), "tensor 'rope_freqs.weight' must hold positive numbers, but holds " + plain(divisor));
    }
  }
  return out;
}

void read_yarn(const Metadata& meta, RopeConfig& rope) {
  rope.beta_fast = meta.number("rope.scaling.yarn_beta_fast", 1e-3, 1e6).value_or(32);
  rope.beta_slow = meta.number("rope.scaling.yarn_beta_slow", 1e-3, 1e6).value_or(1);
  if (meta.number("rope.scaling.yarn_ext_factor", -1e6, 1e6).value_or(1) != 1) {
    meta.unsupported("rope.scaling.yarn_ext_factor", "only 1 is supported");
  }
  // GGUF's factor multiplies yarn's own; attention_factor replaces it.
  if (const auto factor = meta.number("rope.scaling.attn_factor", 1e-6, 1e6)) {
    rope.attention_factor = *factor * (0.1 * std::log(rope.factor) + 1);
  }
}

RopeConfig read_rope(const Metadata& meta, const Architecture& row, const ModelConfig& config) {
  RopeConfig rope;
  rope.theta = meta.number("rope.freq_base", kMinTheta, kMaxTheta).value_or(row.gemma ? row.default_theta : 10000);
  const std::string_view kind = meta.file().get_string(meta.key("rope.scaling.type")).value_or("");
  const bool old_linear = kind.empty() && meta.contains("rope.scale_linear");
  if (kind == "linear" || old_linear) {
    rope.scaling = RopeScaling::kLinear;
  } else if (kind == "yarn") {
    rope.scaling = RopeScaling::kYarn;
  } else if (!kind.empty() && kind != "none") {
    meta.unsupported("rope.scaling.type", "the kinds that are supported are none, linear, yarn, not " + quote(kind));
  }
  if (rope.scaling != RopeScaling::kNone) {
    const char* key = old_linear ? "rope.scale_linear" : "rope.scaling.factor";
    rope.factor = meta.number(key, 1, kMaxRopeFactor).value_or(1);
    rope.original_max_position = meta.integer("rope.scaling.original_context_length", 1, kMaxPosition).value_or(0);
    if (rope.scaling == RopeScaling::kYarn) read_yarn(meta, rope);
  }
  rope.frequency_divisors = read_divisors(meta, config);
  return rope;
}

void read_gemma(const Metadata& meta, ModelConfig& out) {
  out.sandwich_norms = true;
  out.embedding_scale = std::sqrt(static_cast<double>(out.hidden_size));
  if (out.num_layers == kGemma27BLayers) {
    out.attention_scale = 1 / std::sqrt(static_cast<double>(out.hidden_size) / static_cast<double>(out.num_heads));
  }
  out.rope_local.theta = meta.number("rope.freq_base_swa", kMinTheta, kMaxTheta).value_or(kGemmaLocalTheta);
  out.attention_softcap = meta.number("attn_logit_softcapping", 0, 1e6).value_or(0);
  out.final_softcap = meta.number("final_logit_softcapping", 0, 1e6).value_or(0);
  const auto window = static_cast<int32_t>(meta.required_integer("attention.sliding_window", 1, kMaxPosition));
  const GgufValue* pattern_key = meta.file().find(meta.key("attention.sliding_window_pattern"));
  if (pattern_key != nullptr && pattern_key->is_array) {  // true: a window layer
    const auto windowed = *meta.file().get_bools(meta.key("attention.sliding_window_pattern"));
    if (static_cast<int64_t>(windowed.size()) != out.num_layers) {
      meta.fail("attention.sliding_window_pattern", "must have an entry for each layer",
                std::to_string(windowed.size()) + " entries");
    }
    for (size_t i = 0; i < windowed.size(); ++i) out.layer_window[i] = windowed[i] ? window : 0;
    return;
  }
  const int64_t pattern = meta.integer("attention.sliding_window_pattern", 1, kMaxLayers).value_or(kGemmaPattern);
  for (int64_t i = 0; i < out.num_layers; ++i) {
    out.layer_window[static_cast<size_t>(i)] = (i + 1) % pattern != 0 ? window : 0;
  }
}

void read_plain_family(const Metadata& meta, const Architecture& row, ModelConfig& out) {
  for (const char* name : {"attn_logit_softcapping", "final_logit_softcapping"}) {
    if (meta.number(name, 0, 1e6).value_or(0) != 0) {
      meta.unsupported(name, std::string("soft caps are not supported for ") + row.gguf_name);
    }
  }
  const int64_t window = meta.integer("attention.sliding_window", 0, kMaxPosition).value_or(0);
  if (window == 0) return;
  if (row.window == WindowRule::kUpperLayers) {
    meta.unsupported("attention.sliding_window", "which layers have the window is not known for this architecture");
  }
  out.layer_window.assign(out.layer_window.size(), static_cast<int32_t>(window));  // Mistral comes as llama
}

void refuse_unsupported(const Metadata& meta) {
  if (meta.integer("expert_count", 0, INT32_MAX).value_or(0) > 0) {
    meta.unsupported("expert_count", "mixture-of-experts models are not supported yet");
  }
  for (const char* name : {"embedding_scale", "residual_scale", "logit_scale", "attention.clamp_kqv"}) {
    if (meta.contains(name)) meta.unsupported(name, "is not supported for this architecture");
  }
  if (meta.file().get_int("split.count").value_or(1) > 1) {
    fail_load(meta.file().path(),
              "key 'split.count': GGUF files in several parts are not supported; merge them with 'llama-gguf-split "
              "--merge'",
              ErrorKind::kUnsupported);
  }
}

// Biases are not in the metadata: a file that has one of a kind must have all of that kind.
void find_biases(const GgufFile& file, ModelConfig& out) {
  out.qkv_bias = file.find_tensor("blk.0.attn_q.bias") != nullptr;
  out.o_bias = file.find_tensor("blk.0.attn_output.bias") != nullptr;
  out.mlp_bias = file.find_tensor("blk.0.ffn_down.bias") != nullptr;
}

void read_token_ids(const GgufFile& file, ModelConfig& out) {
  const auto token_id = [&](const char* key) -> std::optional<int32_t> {
    const auto id = file.get_int(key);
    if (!id) return std::nullopt;
    if (*id < 0 || *id >= out.vocab_size) {
      fail_load(file.path(), std::string("key '") + key + "' must be from 0 to " + std::to_string(out.vocab_size - 1) +
                                 ", but is " + std::to_string(*id));
    }
    return static_cast<int32_t>(*id);
  };
  for (const char* key :
       {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    const auto id = token_id(key);
    auto& ids = out.eos_token_ids;
    if (id && std::find(ids.begin(), ids.end(), *id) == ids.end()) ids.push_back(*id);
  }
  out.bos_token_id = token_id("tokenizer.ggml.bos_token_id");
}

}  // namespace

ModelConfig parse_gguf_config(const GgufFile& file) {
  const auto name = file.get_string("general.architecture");
  const Architecture* row = name ? find_gguf_architecture(*name) : nullptr;
  if (row == nullptr) {
    fail_load(file.path(),
              "key 'general.architecture' " + (name ? "is " + quote(*name) : std::string("is missing")) +
                  "; the known ones are " + known_gguf_architecture_list(),
              ErrorKind::kUnsupported);
  }
  const Metadata meta(file, std::string(*name) + ".");
  ModelConfig out;
  out.architecture = row->name;
  refuse_unsupported(meta);
  read_shape(meta, out);
  out.hidden_act = row->gemma ? "gelu_pytorch_tanh" : "silu";
  out.qk_norm = row->qk_norm;
  out.tie_word_embeddings = file.find_tensor("output.weight") == nullptr;
  out.layer_window.assign(static_cast<size_t>(out.num_layers), 0);
  out.attention_scale = 1 / std::sqrt(static_cast<double>(out.head_dim));
  find_biases(file, out);
  read_token_ids(file, out);
  constexpr ConfigKeys kKeys = {"attention.head_count", "attention.head_count_kv", "attention.key_length"};
  check_config(out, file.path(), kKeys);
  out.rope = read_rope(meta, *row, out);
  out.rope_local = out.rope;
  if (row->gemma) {
    out.rope_local = RopeConfig();
    read_gemma(meta, out);
  } else {
    read_plain_family(meta, *row, out);
  }
  if (const auto scale = meta.number("attention.scale", 0, 1e6); scale && *scale > 0) out.attention_scale = *scale;
  return out;
}

}  // namespace tokenmill
