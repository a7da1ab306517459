// Facts about a model on disk, for `tokenmill info` and `bench`: read from headers, no weight is loaded.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tokenmill/server_args.h"

namespace tokenmill {

// The tensors of one storage format together.
struct FormatInfo {
  std::string name;  // "BF16", "Q4_1", …
  int64_t tensors = 0, parameters = 0, bytes = 0;
};

struct ModelInfo {
  std::string path, file_format, architecture;
  int64_t files = 0;
  int64_t parameters = 0;           // a tied embedding counts once
  int64_t matrix_parameters = 0;    // what multiplies each token: layers and head, tied or not; no embedding look-up
  int64_t weight_bytes = 0;         // as stored
  std::vector<FormatInfo> formats;  // most bytes first
  int64_t num_layers = 0, hidden_size = 0, intermediate_size = 0, num_heads = 0, num_kv_heads = 0, head_dim = 0;
  int64_t vocab_size = 0, context_length = 0;
  int64_t window_layers = 0, window = 0;  // sliding-window layers and the largest of their windows
  bool tied_embedding = false, quantized = false;
  std::string rope_scaling;  // "none", "linear", …
  double rope_theta = 0;
  int64_t kv_bytes_per_token = 0;      // 16-bit KV, all layers
  int64_t kv_bytes_per_token_f32 = 0;  // with dtype float32
  std::vector<int32_t> eos_token_ids;
  std::optional<int32_t> bos_token_id;
  std::string tokenizer;  // "tokenizer.json", "GGUF vocabulary" or "none"
};

// model_path, load_format, json_model_override_args, revision and download_dir of args are used.
// Throws Error as the engine's loading does.
ModelInfo read_model_info(const ServerArgs& args);

}  // namespace tokenmill
