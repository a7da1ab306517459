// The table of architectures: which forward pass runs which. A family that shares one is a row here.
#include <algorithm>
#include <iterator>
#include <string>
#include <string_view>

#include "models/gemma3.h"
#include "models/llama.h"
#include "models/model.h"
#include "nn/weight_loader.h"
#include "tokenmill/error.h"

namespace tokenmill {

namespace {

struct Architecture {
  std::string_view name;  // Hugging Face's class
  std::unique_ptr<Model> (*load)(WeightLoader& loader);
};

constexpr Architecture kArchitectures[] = {
    {"Gemma3ForCausalLM", load_gemma3}, {"Gemma3ForConditionalGeneration", load_gemma3},
    {"LlamaForCausalLM", load_llama},   {"MistralForCausalLM", load_llama},
    {"Qwen2ForCausalLM", load_llama},   {"Qwen3ForCausalLM", load_llama},
};

// What every forward pass here relies on. A reader's checks may be wider, so they are made where they matter.
void check_config(const ModelConfig& config, const std::string& path) {
  const auto require = [&](bool condition, const std::string& rule, int64_t got) {
    if (condition) return;
    throw Error(ErrorKind::kValue, path + ": config: " + rule + ", got " + std::to_string(got) + ".");
  };
  require(config.hidden_size > 0, "hidden_size must be positive", config.hidden_size);
  require(config.intermediate_size > 0, "intermediate_size must be positive", config.intermediate_size);
  require(config.vocab_size > 0, "vocab_size must be positive", config.vocab_size);
  require(config.num_layers > 0, "num_hidden_layers must be positive", config.num_layers);
  require(config.num_kv_heads > 0, "num_key_value_heads must be positive", config.num_kv_heads);
  require(config.num_heads > 0 && config.num_heads % config.num_kv_heads == 0,
          "num_attention_heads must be a multiple of num_key_value_heads", config.num_heads);
  require(config.head_dim > 0 && config.head_dim % 2 == 0 && config.head_dim <= 256,
          "head_dim must be even and at most 256", config.head_dim);
  require(static_cast<int64_t>(config.layer_window.size()) == config.num_layers,
          "layer_types must name num_hidden_layers layers", static_cast<int64_t>(config.layer_window.size()));
}

}  // namespace

std::unique_ptr<Model> load_model(const Checkpoint& checkpoint, Backend& backend, Packing packing,
                                  const std::function<void(int64_t, int64_t)>& progress) {
  const std::string& name = checkpoint.config().architecture;
  const auto found = std::find_if(std::begin(kArchitectures), std::end(kArchitectures),
                                  [&](const Architecture& architecture) { return architecture.name == name; });
  if (found == std::end(kArchitectures)) {
    std::string known;
    for (const Architecture& architecture : kArchitectures) {
      known += (known.empty() ? "" : ", ") + std::string(architecture.name);
    }
    throw Error(ErrorKind::kUnsupported, checkpoint.resolved_path() + ": architecture '" + name +
                                             "' is not supported. Supported are " + known + ".");
  }
  check_config(checkpoint.config(), checkpoint.resolved_path());
  WeightLoader loader(checkpoint, backend, packing, progress);
  std::unique_ptr<Model> model = found->load(loader);
  loader.finish();
  return model;
}

}  // namespace tokenmill
