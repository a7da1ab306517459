#include "verify/model_info.h"

#include <algorithm>
#include <map>

#include "checkpoint/checkpoint.h"

namespace tokenmill {
namespace {

const char* name_of(RopeScaling scaling) {
  switch (scaling) {
    case RopeScaling::kNone:
      return "none";
    case RopeScaling::kLinear:
      return "linear";
    case RopeScaling::kDynamic:
      return "dynamic";
    case RopeScaling::kLlama3:
      return "llama3";
    case RopeScaling::kYarn:
      return "yarn";
  }
  return "";
}

void add_tensors(const Checkpoint& checkpoint, ModelInfo& model) {
  std::map<std::string, FormatInfo> formats;
  for (const RawTensor* tensor : checkpoint.tensors()) {
    int64_t parameters = 1;
    for (const int64_t size : tensor->shape) parameters *= size;
    FormatInfo& format = formats[info(tensor->type).name];
    format.name = info(tensor->type).name;
    format.tensors += 1;
    format.parameters += parameters;
    format.bytes += static_cast<int64_t>(tensor->bytes());
    const bool lookup_only = tensor->name == "embed_tokens.weight" && !model.tied_embedding;
    if (tensor->shape.size() > 1 && !lookup_only) model.matrix_parameters += parameters;
    model.parameters += parameters;
    model.weight_bytes += static_cast<int64_t>(tensor->bytes());
  }
  for (auto& [name, format] : formats) model.formats.push_back(std::move(format));
  std::sort(model.formats.begin(), model.formats.end(),
            [](const FormatInfo& a, const FormatInfo& b) { return a.bytes > b.bytes; });
}

}  // namespace

ModelInfo read_model_info(const ServerArgs& args) {
  CheckpointOptions options;
  options.load_format = args.load_format;
  options.model_override_json = args.json_model_override_args;
  options.revision = args.revision.value_or("");
  options.download_dir = args.download_dir.value_or("");
  const std::unique_ptr<Checkpoint> checkpoint = Checkpoint::open(args.model_path, options);
  const ModelConfig& config = checkpoint->config();

  ModelInfo model;
  model.path = checkpoint->resolved_path();
  model.file_format = checkpoint->format();
  model.architecture = config.architecture;
  model.files = checkpoint->num_files();
  model.num_layers = config.num_layers;
  model.hidden_size = config.hidden_size;
  model.intermediate_size = config.intermediate_size;
  model.num_heads = config.num_heads;
  model.num_kv_heads = config.num_kv_heads;
  model.head_dim = config.head_dim;
  model.vocab_size = config.vocab_size;
  model.context_length = config.max_position;
  for (const int32_t window : config.layer_window) {
    model.window_layers += window > 0 ? 1 : 0;
    model.window = std::max<int64_t>(model.window, window);
  }
  model.tied_embedding = config.tie_word_embeddings;
  model.quantized = config.quantized;
  model.rope_scaling = name_of(config.rope.scaling);
  model.rope_theta = config.rope.theta;
  const int64_t kv_values = 2 * config.num_layers * config.num_kv_heads * config.head_dim;
  model.kv_bytes_per_token = kv_values * static_cast<int64_t>(size_of(DType::kBF16));
  model.kv_bytes_per_token_f32 = kv_values * static_cast<int64_t>(size_of(DType::kF32));
  model.eos_token_ids = config.eos_token_ids;
  model.bos_token_id = config.bos_token_id;
  const TokenizerSource& source = checkpoint->tokenizer_source();
  model.tokenizer = !source.folder.empty() ? "tokenizer.json" : !source.gguf_path.empty() ? "GGUF vocabulary" : "none";
  add_tensors(*checkpoint, model);
  return model;
}

}  // namespace tokenmill
