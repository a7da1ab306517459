// A model's shape and constants, whichever file they came from (config.json in both spellings, GGUF metadata).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/dtype.h"

namespace tokenmill {

enum class RopeScaling { kNone, kLinear, kDynamic, kLlama3, kYarn };

struct RopeConfig {
  double theta = 10000;
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1;
  int64_t original_max_position = 0;                 // 0: max_position
  double low_freq_factor = 1, high_freq_factor = 4;  // llama3
  double beta_fast = 32, beta_slow = 1;              // yarn
  std::optional<double> attention_factor;            // yarn
  std::optional<double> mscale, mscale_all_dim;      // yarn
  bool yarn_truncate = true;
  std::vector<float> frequency_divisors;  // GGUF rope_freqs.weight: inv_freq[i] /= divisors[i]; empty: none
};

struct ModelConfig {
  std::string architecture;  // Hugging Face class name, e.g. LlamaForCausalLM (GGUF names are mapped to it)
  int64_t hidden_size = 0, intermediate_size = 0, num_layers = 0, vocab_size = 0;
  int64_t num_heads = 0, num_kv_heads = 0, head_dim = 0;
  int64_t max_position = 0;  // context length the model declares
  double rms_norm_eps = 1e-6;
  std::string hidden_act;  // "silu", "gelu_pytorch_tanh", …
  bool tie_word_embeddings = false;
  bool qkv_bias = false, o_bias = false, mlp_bias = false;
  bool qk_norm = false;         // RMS norm per head on q and k
  bool norm_plus_one = false;   // stored norm weights are w of 1 + w (already added in by Checkpoint)
  bool sandwich_norms = false;  // norms after attention and MLP too (Gemma 3)
  double embedding_scale = 1;   // Gemma: sqrt(hidden_size)
  double attention_scale = 0;   // multiplier of q·k: head_dim^-0.5 or query_pre_attn_scalar^-0.5
  double attention_softcap = 0, final_softcap = 0;  // 0: none
  RopeConfig rope;                                  // global layers
  RopeConfig rope_local;                            // window layers, where they differ (Gemma 3)
  // Per layer: 0 = full attention, else the window in tokens (key j visible to i iff i - window < j <= i).
  std::vector<int32_t> layer_window;
  std::vector<int32_t> eos_token_ids;  // union of generation_config.json, config.json (GGUF: eos, eot, eom)
  std::optional<int32_t> bos_token_id;
  WeightType dtype = WeightType::kBF16;  // what `dtype: auto` means: kF32, kF16 or kBF16 (GGUF: of most weights)
  bool quantized = false;                // most matrix weights are of a block format
};

}  // namespace tokenmill
