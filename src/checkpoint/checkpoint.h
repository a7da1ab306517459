// A model on disk, opened: its ModelConfig and its tensors under canonical names, whether it is a Hugging Face folder
// (safetensors) or a GGUF file.
//
// Canonical names (those of Hugging Face's Llama without the leading "model."):
//   embed_tokens.weight  norm.weight  lm_head.weight
//   layers.N.input_layernorm.weight  layers.N.post_attention_layernorm.weight
//   layers.N.pre_feedforward_layernorm.weight  layers.N.post_feedforward_layernorm.weight           (Gemma 3)
//   layers.N.self_attn.{q,k,v,o}_proj.{weight,bias}  layers.N.self_attn.{q,k}_norm.weight
//   layers.N.mlp.{gate,up,down}_proj.{weight,bias}
// q and k rows are in Hugging Face order (GGUF Llama's permutation undone); norm weights include Gemma's 1 +.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/log.h"
#include "base/tensor.h"
#include "checkpoint/model_config.h"
#include "tokenmill/hub.h"

namespace tokenmill {

// Where the tokenizer's data is: a folder with tokenizer.json, or a GGUF file's own vocabulary.
struct TokenizerSource {
  std::string folder;     // holds tokenizer.json, tokenizer_config.json, chat_template.jinja; or empty
  std::string gguf_path;  // or empty
};

struct CheckpointOptions {
  std::string load_format = "auto";        // auto, safetensors, gguf, dummy
  std::string model_override_json = "{}";  // merged over config.json
  std::string revision;                    // of a model on the hub: branch, tag or commit; "": main
  std::string download_dir;                // hub cache folder; "": HF_HUB_CACHE, HF_HOME, ~/.cache/huggingface/hub
  uint64_t dummy_seed = 0;
  bool tokenizer_only = false;                                         // of a model on the hub, fetch no weights
  const Logger* logger = nullptr;                                      // for downloads
  std::function<bool(const DownloadProgress&)> on_download = nullptr;  // false stops it; null: a bar on a terminal
  std::function<bool()> keep_going = nullptr;                          // asked while downloading; false stops it
};

class Checkpoint {
 public:
  // path: a folder, a .gguf file, or a hub id (fetched where it is not in the cache). Throws Error naming file, key and
  // remedy.
  static std::unique_ptr<Checkpoint> open(const std::string& path, const CheckpointOptions& options);
  virtual ~Checkpoint() = default;

  const ModelConfig& config() const { return config_; }
  const TokenizerSource& tokenizer_source() const { return tokenizer_source_; }
  const std::string& resolved_path() const { return resolved_path_; }
  const std::string& format() const { return format_; }  // "safetensors", "gguf", "dummy"

  // nullptr where there is none; optional tensors only. A tensor that is not stored as it is wanted (GGUF Llama's q and
  // k, Gemma's norms, dummy weights) is made here and lives until release(): fetch tensors by find() or get().
  virtual const RawTensor* find(std::string_view canonical_name) const = 0;
  // Throws Error(kValue) naming the file, the tensor and both shapes when it is missing or of another shape.
  const RawTensor& get(std::string_view canonical_name, const std::vector<int64_t>& shape) const;
  // Names, types and shapes of all; data may be null until find() or get().
  virtual std::vector<const RawTensor*> tensors() const = 0;
  // Gives a tensor's pages back to the system after it was packed.
  virtual void release(const RawTensor& tensor) const = 0;
  virtual int64_t num_files() const = 0;  // shards, for the progress line
  virtual int64_t file_of(const RawTensor& tensor) const = 0;

 protected:
  ModelConfig config_;
  TokenizerSource tokenizer_source_;
  std::string resolved_path_, format_;
};

// The architectures that ModelConfig can be made for, sorted: for error messages and docs.
std::vector<std::string> known_architectures();

}  // namespace tokenmill
