#include "checkpoint/config_limits.h"

#include "base/check.h"
#include "checkpoint/load_error.h"

namespace tokenmill {

namespace {

void check_ids(const ModelConfig& config, const std::string& file) {
  for (int32_t id : config.eos_token_ids) {
    if (id < 0 || id >= config.vocab_size) {
      fail_load(file, "end-of-text id " + std::to_string(id) + " must be from 0 to " +
                          std::to_string(config.vocab_size - 1) + " (the vocabulary has " +
                          std::to_string(config.vocab_size) + " ids)");
    }
  }
}

}  // namespace

void check_config(const ModelConfig& config, const std::string& file, const ConfigKeys& keys) {
  TM_CHECK(config.num_heads > 0 && config.num_kv_heads > 0 && config.num_layers > 0);
  TM_CHECK(static_cast<int64_t>(config.layer_window.size()) == config.num_layers);
  if (config.num_kv_heads > config.num_heads || config.num_heads % config.num_kv_heads != 0) {
    fail_load(file, "key " + quote(keys.heads) + " must be a multiple of " + quote(keys.kv_heads) + ", but they are " +
                        std::to_string(config.num_heads) + " and " + std::to_string(config.num_kv_heads));
  }
  const std::string head_dim = std::to_string(config.head_dim);
  if (config.head_dim < 2 || config.head_dim % 2 != 0) {
    fail_load(file, "key " + quote(keys.head_dim) + " must be even and at least 2, but the head size is " + head_dim);
  }
  if (config.head_dim > kMaxHeadDim) {
    fail_load(file,
              "key " + quote(keys.head_dim) + ": head sizes up to " + std::to_string(kMaxHeadDim) +
                  " are supported, but the head size is " + head_dim,
              ErrorKind::kUnsupported);
  }
  check_ids(config, file);
}

std::string canonical_activation(const std::string& name) {
  if (name == "silu" || name == "swish") return "silu";
  if (name == "gelu_pytorch_tanh" || name == "gelu_new" || name == "gelu_fast") return "gelu_pytorch_tanh";
  return "";
}

}  // namespace tokenmill
