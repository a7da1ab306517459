#include "checkpoint/architectures.h"

#include <algorithm>
#include <vector>

#include "checkpoint/checkpoint.h"

namespace tokenmill {

namespace {

constexpr Architecture kArchitectures[] = {
    // clang-format off
    // name, gguf, attention bias, mlp_bias, qk_norm, gemma, tie, window, kv, head_dim, max_position, theta, heads, vocab
    {"LlamaForCausalLM", "llama", BiasRule::kFromConfig, true, false, false, false, WindowRule::kNone,
     0, 0, 2048, 10000, 0, 0, nullptr},
    {"MistralForCausalLM", "", BiasRule::kNever, false, false, false, false, WindowRule::kAllLayers,
     8, 0, 131072, 10000, 0, 0, nullptr},
    {"Qwen2ForCausalLM", "qwen2", BiasRule::kQkvAlways, false, false, false, false, WindowRule::kUpperLayers,
     32, 0, 32768, 10000, 0, 0, nullptr},
    {"Qwen3ForCausalLM", "qwen3", BiasRule::kFromConfig, false, true, false, false, WindowRule::kUpperLayers,
     32, 128, 32768, 10000, 0, 0, nullptr},
    {"Gemma3ForCausalLM", "gemma3", BiasRule::kFromConfig, false, true, true, true, WindowRule::kPattern,
     4, 256, 131072, 1000000, 8, 262208, nullptr},
    {"Gemma3ForConditionalGeneration", "", BiasRule::kFromConfig, false, true, true, true, WindowRule::kPattern,
     4, 256, 131072, 1000000, 8, 262208, "Gemma3ForCausalLM"},
    // clang-format on
};

std::string joined(std::vector<std::string> names) {
  std::sort(names.begin(), names.end());
  std::string out;
  for (const std::string& name : names) out += (out.empty() ? "" : ", ") + name;
  return out;
}

}  // namespace

std::span<const Architecture> architectures() { return kArchitectures; }

const Architecture* find_architecture(std::string_view name) {
  for (const Architecture& row : kArchitectures) {
    if (name == row.name) return &row;
  }
  return nullptr;
}

const Architecture* find_gguf_architecture(std::string_view name) {
  for (const Architecture& row : kArchitectures) {
    if (!name.empty() && name == row.gguf_name) return &row;
  }
  return nullptr;
}

std::vector<std::string> known_architectures() {
  std::vector<std::string> names;
  for (const Architecture& row : kArchitectures) names.emplace_back(row.name);
  std::sort(names.begin(), names.end());
  return names;
}

std::string known_architecture_list() { return joined(known_architectures()); }

std::string known_gguf_architecture_list() {
  std::vector<std::string> names;
  for (const Architecture& row : kArchitectures) {
    if (*row.gguf_name != '\0') names.emplace_back(row.gguf_name);
  }
  return joined(std::move(names));
}

}  // namespace tokenmill
