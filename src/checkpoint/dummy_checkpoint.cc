#include <cmath>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "checkpoint/hf_checkpoint.h"
#include "checkpoint/tensor_names.h"
#include "checkpoint/tensor_store.h"

namespace tokenmill {

namespace {

constexpr float kStandardDeviation = 0.02f;

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection that leaves no visible structure.
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

uint64_t hash_name(std::string_view name) {  // FNV-1a
  uint64_t hash = 0xcbf29ce484222325u;
  for (char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

// The sum of four 16-bit uniforms, centred and scaled to variance 1: near enough to normal, and exact on any machine.
float near_normal(uint64_t bits) {
  int32_t sum = 0;
  for (int i = 0; i < 4; ++i) sum += static_cast<int32_t>((bits >> (16 * i)) & 0xffff);
  constexpr double kVariance = 4 * (65536.0 * 65536.0 - 1) / 12;
  static const float kScale = static_cast<float>(1 / std::sqrt(kVariance));
  return static_cast<float>(sum - 2 * 65535) * kScale;
}

std::vector<std::byte> random_weights(uint64_t key, const std::vector<int64_t>& shape, bool norm, WeightType type) {
  size_t count = 1;
  for (int64_t size : shape) count *= static_cast<size_t>(size);
  const auto element_bytes = static_cast<size_t>(info(type).block_bytes);
  std::vector<std::byte> out(count * element_bytes);
  for (size_t i = 0; i < count; ++i) {
    const float value = norm ? 1.0f : kStandardDeviation * near_normal(mix(key ^ mix(i)));
    if (type == WeightType::kF32) {
      std::memcpy(out.data() + i * element_bytes, &value, element_bytes);
    } else {
      const uint16_t half = f32_to_bf16(value);
      std::memcpy(out.data() + i * element_bytes, &half, element_bytes);
    }
  }
  return out;
}

class DummyCheckpoint final : public TensorStore {
 public:
  DummyCheckpoint(const std::string& folder, const CheckpointOptions& options) {
    config_ = read_hf_config(folder, options).config;
    resolved_path_ = folder;
    format_ = "dummy";
    std::error_code error;
    if (std::filesystem::is_regular_file(folder + "/tokenizer.json", error)) tokenizer_source_.folder = folder;
    if (config_.dtype != WeightType::kF32) config_.dtype = WeightType::kBF16;
    for (TensorSpec& spec : tensor_specs(config_)) {
      RawTensor tensor;
      tensor.name = spec.name;
      tensor.shape = spec.shape;
      tensor.type = config_.dtype;
      const uint64_t key = mix(options.dummy_seed ^ hash_name(spec.name));
      const bool norm = is_norm(spec.name);
      add(std::move(tensor), 0, {}, [key, shape = std::move(spec.shape), norm, type = config_.dtype] {
        return random_weights(key, shape, norm, type);
      });
    }
  }
};

}  // namespace

std::unique_ptr<Checkpoint> open_dummy(const std::string& folder, const CheckpointOptions& options) {
  return std::make_unique<DummyCheckpoint>(folder, options);
}

}  // namespace tokenmill
