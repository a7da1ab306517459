// Bounds on what a model may declare, whichever file declares it, and the checks that join several values.
#pragma once

#include <cstdint>
#include <string>

#include "checkpoint/model_config.h"

namespace tokenmill {

inline constexpr int64_t kMaxHidden = int64_t{1} << 20;
inline constexpr int64_t kMaxIntermediate = int64_t{1} << 22;
inline constexpr int64_t kMaxLayers = 1024;
inline constexpr int64_t kMaxVocab = int64_t{1} << 24;
inline constexpr int64_t kMaxHeads = 4096;
inline constexpr int64_t kMaxHeadDim = 256;
inline constexpr int64_t kMaxPosition = int64_t{1} << 30;
inline constexpr double kMinTheta = 1, kMaxTheta = 1e12;
inline constexpr double kMaxRopeFactor = 1e6;
inline constexpr double kMinEps = 1e-12, kMaxEps = 0.1;
inline constexpr size_t kMaxEosIds = 64;

// How the file spells the values that a joint check is about.
struct ConfigKeys {
  const char *heads, *kv_heads, *head_dim;
};
inline constexpr ConfigKeys kHuggingFaceKeys = {"num_attention_heads", "num_key_value_heads", "head_dim"};

// Throws Error naming file, key, rule and value.
void check_config(const ModelConfig& config, const std::string& file, const ConfigKeys& keys);

// "silu" and its aliases, "gelu_pytorch_tanh" and its aliases under one name each; "" where it is not supported.
std::string canonical_activation(const std::string& name);

}  // namespace tokenmill
