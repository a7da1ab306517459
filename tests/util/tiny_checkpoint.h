// Complete little models made by tests: a Hugging Face folder's files or a GGUF file, of any family and weight type.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "checkpoint/config_json.h"
#include "checkpoint/tensor_names.h"
#include "util/gguf_writer.h"
#include "util/safetensors_writer.h"

namespace tokenmill::testing {

// A config.json of 2 layers; families differ in `architecture` only. heads 4 over 2, head size 8.
inline nlohmann::json little_config(const std::string& architecture = "LlamaForCausalLM") {
  return {{"architectures", {architecture}},
          {"hidden_size", 32},
          {"intermediate_size", 64},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2},
          {"head_dim", 8},
          {"vocab_size", 40},
          {"max_position_embeddings", 64},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 10000.0},
          {"torch_dtype", "bfloat16"},
          {"eos_token_id", 2},
          {"bos_token_id", 1},
          {"tie_word_embeddings", true}};
}

inline std::string random_bytes(uint64_t seed, size_t size) {
  std::mt19937_64 generator(seed);
  std::string out(size, '\0');
  for (char& c : out) c = static_cast<char>(generator());
  return out;
}

// Small finite numbers in the given unquantised type.
inline std::string random_values(uint64_t seed, size_t count, WeightType type) {
  std::mt19937_64 generator(seed);
  std::string out;
  for (size_t i = 0; i < count; ++i) {
    const float value = static_cast<float>(static_cast<int64_t>(generator() % 2001) - 1000) / 4096.0f;
    const uint16_t bf16 = f32_to_bf16(value);
    const uint16_t f16 = static_cast<uint16_t>((generator() & 0x83ffu) | 0x2c00u);  // +-[1/16, 1/8)
    if (type == WeightType::kF32) out.append(reinterpret_cast<const char*>(&value), 4);
    if (type == WeightType::kBF16) out.append(reinterpret_cast<const char*>(&bf16), 2);
    if (type == WeightType::kF16) out.append(reinterpret_cast<const char*>(&f16), 2);
  }
  return out;
}

inline size_t element_count(const std::vector<int64_t>& shape) {
  size_t count = 1;
  for (int64_t size : shape) count *= static_cast<size_t>(size);
  return count;
}

// The tensors a config.json asks for, with random bf16 values and Hugging Face's names.
inline std::vector<SafetensorsEntry> little_tensors(const nlohmann::json& config, uint64_t seed = 1) {
  std::vector<SafetensorsEntry> out;
  for (const TensorSpec& spec : tensor_specs(parse_model_config(config, "config.json").config)) {
    const std::string name = spec.name == "lm_head.weight" ? spec.name : "model." + spec.name;
    out.push_back({name, "BF16", spec.shape, random_values(seed++, element_count(spec.shape), WeightType::kBF16)});
  }
  return out;
}

inline uint32_t ggml_number(WeightType type) {
  constexpr uint32_t kNumbers[] = {0, 1, 30, 8, 2, 3, 6, 7, 10, 11, 12, 13, 14};  // order of WeightType
  return kNumbers[static_cast<int>(type)];
}

struct LittleGguf {
  std::string architecture = "llama";  // GGUF's name
  WeightType type = WeightType::kF32;  // of the matrices; the rest is F32
  bool tied = true, qkv_bias = false, o_bias = false, mlp_bias = false;
  int64_t hidden = 32, inner = 64, layers = 2, heads = 4, kv_heads = 2, head_dim = 8, vocab = 40;
  uint64_t seed = 1;
};

// Blocks of quantised types are random bytes, whose values may be NaN: good for bytes, not for a forward pass.
inline GgufWriter little_gguf(const LittleGguf& model) {
  ModelConfig config;
  config.hidden_size = model.hidden, config.intermediate_size = model.inner, config.num_layers = model.layers;
  config.num_heads = model.heads, config.num_kv_heads = model.kv_heads, config.head_dim = model.head_dim;
  config.vocab_size = model.vocab, config.tie_word_embeddings = model.tied;
  config.qkv_bias = model.qkv_bias, config.o_bias = model.o_bias, config.mlp_bias = model.mlp_bias;
  config.sandwich_norms = model.architecture == "gemma3";
  config.qk_norm = model.architecture == "gemma3" || model.architecture == "qwen3";
  GgufWriter out;
  const auto u32 = [&](const char* key, int64_t value) {
    out.add_u32(model.architecture + "." + key, static_cast<uint32_t>(value));
  };
  out.add_string("general.architecture", model.architecture);
  u32("block_count", model.layers), u32("embedding_length", model.hidden), u32("feed_forward_length", model.inner);
  u32("attention.head_count", model.heads), u32("attention.head_count_kv", model.kv_heads);
  u32("attention.key_length", model.head_dim), u32("attention.value_length", model.head_dim);
  u32("context_length", 64);
  out.add_f32(model.architecture + ".attention.layer_norm_rms_epsilon", 1e-5f);
  out.add_f32(model.architecture + ".rope.freq_base", 10000);
  if (config.sandwich_norms) u32("attention.sliding_window", 16);
  std::vector<std::string> tokens;
  for (int64_t i = 0; i < model.vocab; ++i) tokens.push_back("t" + std::to_string(i));
  out.add_strings("tokenizer.ggml.tokens", tokens);
  out.add_u32("tokenizer.ggml.eos_token_id", 2);
  out.add_u32("tokenizer.ggml.bos_token_id", 1);
  uint64_t seed = model.seed;
  for (const TensorSpec& spec : tensor_specs(config)) {
    const WeightType type = spec.shape.size() == 2 ? model.type : WeightType::kF32;
    const WeightTypeInfo& sizes = info(type);
    const size_t count = element_count(spec.shape);
    std::string data = sizes.quantized ? random_bytes(seed, count / static_cast<size_t>(sizes.block_values) *
                                                                static_cast<size_t>(sizes.block_bytes))
                                       : random_values(seed, count, type);
    out.add_tensor(gguf_from_canonical(spec.name, config.sandwich_norms), ggml_number(type), spec.shape,
                   std::move(data));
    ++seed;
  }
  return out;
}

}  // namespace tokenmill::testing
