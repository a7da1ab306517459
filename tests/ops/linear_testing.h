// Random tensors of every weight format, and matrices that own their values, for the tests of packing and products.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/tensor.h"

namespace tokenmill::testing_linear {

struct FloatMatrix {
  int64_t rows, cols;
  std::vector<float> values;

  FloatMatrix(int64_t r, int64_t c) : rows(r), cols(c), values(static_cast<size_t>(r * c)) {}
  float* row(int64_t i) { return values.data() + i * cols; }
  const float* row(int64_t i) const { return values.data() + i * cols; }
  Matrix view() const { return {const_cast<float*>(values.data()), rows, cols, cols, DType::kF32}; }
  FloatMatrix middle(int64_t begin, int64_t count) const {
    FloatMatrix part(count, cols);
    std::copy(row(begin), row(begin) + count * cols, part.values.data());
    return part;
  }
  FloatMatrix top(int64_t count) const { return middle(0, count); }
};

inline bool same_bits(const FloatMatrix& a, const FloatMatrix& b) {
  return a.rows == b.rows && a.cols == b.cols &&
         std::memcmp(a.values.data(), b.values.data(), a.values.size() * sizeof(float)) == 0;
}

inline std::vector<WeightType> all_types() {
  std::vector<WeightType> types;
  for (int i = 0; i <= static_cast<int>(WeightType::kQ6K); ++i) types.push_back(static_cast<WeightType>(i));
  return types;
}

inline FloatMatrix random_matrix(int64_t rows, int64_t cols, std::mt19937& random) {
  FloatMatrix matrix(rows, cols);
  std::normal_distribution<float> normal;
  for (float& value : matrix.values) value = normal(random);
  return matrix;
}

// An fp16 of either sign between 2^-10 and 2^-5.
inline uint16_t random_half(std::mt19937& random) {
  return static_cast<uint16_t>((random() & 0x8000u) | (5 + random() % 5) << 10 | (random() & 0x3ffu));
}

// Any bytes are codes and integer scales; the fp16 scales are put in so that they are finite and of one size.
inline void fill_block(WeightType type, std::byte* block, std::mt19937& random) {
  for (int i = 0; i < info(type).block_bytes; ++i) block[i] = static_cast<std::byte>(random());
  const auto put_half = [&](int offset) {
    const uint16_t half = random_half(random);
    std::memcpy(block + offset, &half, sizeof half);
  };
  switch (type) {
    case WeightType::kF32: {
      const float value = std::normal_distribution<float>()(random);
      std::memcpy(block, &value, sizeof value);
      return;
    }
    case WeightType::kF16:
      return put_half(0);
    case WeightType::kBF16: {
      const uint16_t value = f32_to_bf16(std::normal_distribution<float>()(random));
      std::memcpy(block, &value, sizeof value);
      return;
    }
    case WeightType::kQ8_0:
    case WeightType::kQ4_0:
    case WeightType::kQ5_0:
      return put_half(0);
    case WeightType::kQ4_1:
    case WeightType::kQ5_1:
    case WeightType::kQ4K:
    case WeightType::kQ5K:
      put_half(0);
      return put_half(2);
    case WeightType::kQ2K:
      put_half(80);
      return put_half(82);
    case WeightType::kQ3K:
      return put_half(108);
    case WeightType::kQ6K:
      return put_half(208);
  }
}

inline std::unique_ptr<RawTensor> random_tensor(WeightType type, int64_t rows, int64_t cols, std::mt19937& random,
                                                const std::string& name = "layers.0.mlp.down_proj.weight") {
  auto tensor = std::make_unique<RawTensor>();
  tensor->name = name;
  tensor->type = type;
  tensor->shape = {rows, cols};
  auto bytes = std::make_shared<std::vector<std::byte>>(tensor->bytes());
  for (size_t i = 0; i < bytes->size(); i += static_cast<size_t>(info(type).block_bytes)) {
    fill_block(type, bytes->data() + i, random);
  }
  tensor->data = bytes->data();
  tensor->owned = bytes;
  return tensor;
}

}  // namespace tokenmill::testing_linear
