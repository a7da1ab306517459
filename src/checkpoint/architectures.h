// The table of architectures: what config.json and GGUF metadata leave to the model's class.
//
// A family whose forward pass exists under another name is one row here.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace tokenmill {

enum class BiasRule {
  kNever,      // no biases; attention_bias = true is refused
  kQkvAlways,  // on q, k and v
  kFromConfig  // attention_bias: q, k, v and o
};

// Which layers have the sliding window, where config.json has no layer_types.
enum class WindowRule {
  kNone,         // the class knows no window; the keys are not its own
  kAllLayers,    // sliding_window, on every layer (Mistral)
  kUpperLayers,  // use_sliding_window and max_window_layers (Qwen)
  kPattern,      // all but every sliding_window_pattern-th layer (Gemma 3)
};

// Defaults are those of the transformers configuration class; 0: the key is required, or computed as noted.
struct Architecture {
  const char* name;       // Hugging Face class name
  const char* gguf_name;  // general.architecture, or "" where another row has it
  BiasRule attention_bias;
  bool mlp_bias_key;  // reads mlp_bias
  bool qk_norm;
  bool gemma;  // 1 + w norms, sandwich norms, scaled embeddings, softcaps, local rope
  bool tie_default;
  WindowRule window;
  int64_t default_kv_heads;  // 0: num_attention_heads
  int64_t default_head_dim;  // 0: hidden_size / num_attention_heads
  int64_t default_max_position;
  double default_theta;
  int64_t default_heads, default_vocab_size;  // 0: required
  // A wrapper around a text model: the settings are in text_config, and ModelConfig gets the text model's name.
  const char* text_architecture;  // nullptr: none
};

std::span<const Architecture> architectures();
const Architecture* find_architecture(std::string_view name);       // nullptr: unknown
const Architecture* find_gguf_architecture(std::string_view name);  // nullptr: unknown
std::string known_architecture_list();                              // "A, B, C" for messages
std::string known_gguf_architecture_list();

}  // namespace tokenmill
