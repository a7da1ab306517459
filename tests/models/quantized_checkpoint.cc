#include "models/quantized_checkpoint.h"

#include <cmath>
#include <cstring>
#include <random>

#include "ops/dequantize.h"

namespace tokenmill::test {

namespace {

constexpr double kWeightSize = 0.05;  // root mean square

// Where a block keeps its fp16 scale and, behind it, its fp16 minimum (or -1): ggml-common.h.
struct ScaleOffsets {
  int scale, minimum;
};
ScaleOffsets scale_offsets(WeightType type) {
  switch (type) {
    case WeightType::kQ4_1:
    case WeightType::kQ5_1:
    case WeightType::kQ4K:
    case WeightType::kQ5K:
      return {0, 2};
    case WeightType::kQ2K:
      return {80, 82};
    case WeightType::kQ3K:
      return {108, -1};
    case WeightType::kQ6K:
      return {208, -1};
    default:
      return {0, -1};
  }
}

// fp16 bits of 2^exponent, exponent in [-24, 15].
uint16_t power_of_two_f16(int exponent) {
  return static_cast<uint16_t>(exponent < -14 ? 1 << (exponent + 24) : (exponent + 15) << 10);
}

void set_scales(std::vector<std::byte>& blocks, WeightType type, int exponent) {
  const auto [scale, minimum] = scale_offsets(type);
  const uint16_t bits = power_of_two_f16(exponent);
  for (size_t begin = 0; begin < blocks.size(); begin += static_cast<size_t>(info(type).block_bytes)) {
    std::memcpy(&blocks[begin + static_cast<size_t>(scale)], &bits, sizeof bits);
    if (minimum >= 0) std::memcpy(&blocks[begin + static_cast<size_t>(minimum)], &bits, sizeof bits);
  }
}

double root_mean_square(const std::vector<std::byte>& blocks, WeightType type) {
  const int64_t count = static_cast<int64_t>(blocks.size()) / info(type).block_bytes * info(type).block_values;
  std::vector<float> values(static_cast<size_t>(count));
  dequantize_row(type, blocks.data(), count, values.data());
  double sum = 0;
  for (const float value : values) sum += double{value} * value;
  return std::sqrt(sum / static_cast<double>(count));
}

}  // namespace

QuantizedCheckpoint::QuantizedCheckpoint(WeightType type, uint64_t seed) {
  config_.architecture = "LlamaForCausalLM";
  config_.hidden_size = 256, config_.intermediate_size = 512, config_.num_layers = 2, config_.vocab_size = 300;
  config_.num_heads = 8, config_.num_kv_heads = 2, config_.head_dim = 32, config_.max_position = 512;
  config_.hidden_act = "silu";
  config_.tie_word_embeddings = true;
  config_.attention_scale = 1 / std::sqrt(32.0);
  config_.layer_window = {0, 0};
  config_.quantized = true;
  resolved_path_ = "quantised test model";
  format_ = "gguf";
  add_matrix("embed_tokens.weight", 300, 256, type, seed);
  add_ones("norm.weight", 256);
  for (int layer = 0; layer < 2; ++layer) {
    const std::string prefix = "layers." + std::to_string(layer) + ".";
    add_ones(prefix + "input_layernorm.weight", 256);
    add_ones(prefix + "post_attention_layernorm.weight", 256);
    add_matrix(prefix + "self_attn.q_proj.weight", 256, 256, type, ++seed);
    add_matrix(prefix + "self_attn.k_proj.weight", 64, 256, type, ++seed);
    add_matrix(prefix + "self_attn.v_proj.weight", 64, 256, type, ++seed);
    add_matrix(prefix + "self_attn.o_proj.weight", 256, 256, type, ++seed);
    add_matrix(prefix + "mlp.gate_proj.weight", 512, 256, type, ++seed);
    add_matrix(prefix + "mlp.up_proj.weight", 512, 256, type, ++seed);
    add_matrix(prefix + "mlp.down_proj.weight", 256, 512, type, ++seed);
  }
}

void QuantizedCheckpoint::add_matrix(const std::string& name, int64_t rows, int64_t cols, WeightType type,
                                     uint64_t seed) {
  RawTensor tensor{.name = name, .type = type, .shape = {rows, cols}, .data = nullptr, .owned = nullptr};
  auto bytes = std::make_shared<std::vector<std::byte>>(tensor.bytes());
  std::mt19937_64 random(seed);
  for (std::byte& byte : *bytes) byte = static_cast<std::byte>(random());
  set_scales(*bytes, type, -4);
  const double unscaled = root_mean_square(*bytes, type);
  set_scales(*bytes, type, -4 + static_cast<int>(std::lround(std::log2(kWeightSize / unscaled))));
  tensor.data = bytes->data();
  tensor.owned = std::move(bytes);
  tensors_.emplace(name, std::move(tensor));
}

void QuantizedCheckpoint::add_ones(const std::string& name, int64_t size) {
  const std::vector<float> ones(static_cast<size_t>(size), 1.0f);
  auto bytes = std::make_shared<std::vector<std::byte>>(ones.size() * sizeof(float));
  std::memcpy(bytes->data(), ones.data(), bytes->size());
  RawTensor tensor{.name = name, .type = WeightType::kF32, .shape = {size}, .data = bytes->data(), .owned = bytes};
  tensors_.emplace(name, std::move(tensor));
}

const RawTensor* QuantizedCheckpoint::find(std::string_view canonical_name) const {
  const auto found = tensors_.find(canonical_name);
  return found == tensors_.end() ? nullptr : &found->second;
}

std::vector<const RawTensor*> QuantizedCheckpoint::tensors() const {
  std::vector<const RawTensor*> all;
  for (const auto& [name, tensor] : tensors_) all.push_back(&tensor);
  return all;
}

}  // namespace tokenmill::test
