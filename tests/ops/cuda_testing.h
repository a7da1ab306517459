// What the tests of the CUDA backend share: matrices in a backend's memory with poison around them, and the fixture
// that runs one op sequence on the naive backend and on CUDA, through Backend alone, with fresh random inputs.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "models/naive_backend.h"
#include "ops/backend_registry.h"

namespace tokenmill {

inline const float kNan = std::numeric_limits<float>::quiet_NaN();

inline uint64_t fresh_seed() {
  static std::random_device device;
  return uint64_t{device()} << 32 | device();
}

inline std::vector<float> normal_values(int64_t count, std::mt19937_64& random, double deviation = 1) {
  std::normal_distribution<double> normal(0, deviation);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(normal(random));
  return values;
}

// The values of a matrix without the gaps between its rows; fails if a gap, which held NaN, was written.
template <class ValueAt>
std::vector<float> dense_values(const Matrix& matrix, ValueAt value_at) {
  std::vector<float> dense;
  for (int64_t r = 0; r < matrix.rows; ++r) {
    for (int64_t c = 0; c < matrix.stride; ++c) {
      const float value = value_at(static_cast<size_t>(r * matrix.stride + c));
      if (c < matrix.cols) {
        dense.push_back(value);
      } else {
        EXPECT_TRUE(std::isnan(value)) << "a gap was written, row " << r;
      }
    }
  }
  return dense;
}

// A matrix in a backend's memory with NaN in the gaps between its rows.
class Placed {
 public:
  Placed(Backend& backend, int64_t rows, int64_t cols, int64_t extra = 5)
      : backend_(backend), values_(static_cast<size_t>(rows * (cols + extra)), kNan) {
    matrix_ = {backend.allocate(values_.size() * 4), rows, cols, cols + extra, DType::kF32};
    send();
  }
  Placed(Backend& backend, int64_t rows, int64_t cols, const std::vector<float>& dense, int64_t extra = 5)
      : Placed(backend, rows, cols, extra) {
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(&dense[static_cast<size_t>(r * cols)], cols, &values_[static_cast<size_t>(r * matrix_.stride)]);
    }
    send();
  }
  ~Placed() { backend_.free(static_cast<std::byte*>(matrix_.data)); }
  Placed(const Placed&) = delete;
  Placed& operator=(const Placed&) = delete;

  Matrix view() const { return matrix_; }
  std::vector<float> read() {
    std::vector<float> all(values_.size());
    backend_.copy_to_host(all.data(), matrix_.data, all.size() * 4);
    return dense_values(matrix_, [&](size_t at) { return all[at]; });
  }

 private:
  void send() { backend_.copy_from_host(matrix_.data, values_.data(), values_.size() * 4); }
  Backend& backend_;
  std::vector<float> values_;
  Matrix matrix_;
};

// Rows of 16 bytes' alignment in the type that product_input() names, poisoned.
class PlacedInput {
 public:
  PlacedInput(Backend& backend, int64_t rows, int64_t cols, Packing packing = Packing::kBFloat16)
      : backend_(backend), bytes_(static_cast<size_t>(rows * (cols + 8)) * 4, std::byte{0xff}) {
    const DType dtype = backend.product_input(packing);
    matrix_ = {backend.allocate(bytes_.size()), rows, cols, cols + 8, dtype};
    backend.copy_from_host(matrix_.data, bytes_.data(), bytes_.size());
  }
  ~PlacedInput() { backend_.free(static_cast<std::byte*>(matrix_.data)); }
  PlacedInput(const PlacedInput&) = delete;
  PlacedInput& operator=(const PlacedInput&) = delete;

  Matrix view() const { return matrix_; }
  std::vector<float> read() {
    backend_.copy_to_host(bytes_.data(), matrix_.data, bytes_.size());
    return dense_values(matrix_, [&](size_t at) {
      const auto* const halves = reinterpret_cast<const uint16_t*>(bytes_.data());
      return matrix_.dtype == DType::kBF16  ? bf16_to_f32(halves[at])
             : matrix_.dtype == DType::kF16 ? f16_to_f32(halves[at])
                                            : reinterpret_cast<const float*>(bytes_.data())[at];
    });
  }

 private:
  Backend& backend_;
  std::vector<std::byte> bytes_;
  Matrix matrix_;
};

class PlacedVector {
 public:
  PlacedVector(Backend& backend, const std::vector<float>& values)
      : backend_(backend), memory_(backend.allocate(values.size() * 4)) {
    backend.copy_from_host(memory_, values.data(), values.size() * 4);
  }
  ~PlacedVector() { backend_.free(memory_); }
  PlacedVector(const PlacedVector&) = delete;
  PlacedVector& operator=(const PlacedVector&) = delete;
  const float* data() const { return reinterpret_cast<const float*>(memory_); }

 private:
  Backend& backend_;
  std::byte* memory_;
};

// ||got - want|| / ||want||; NaN anywhere gives NaN, which fails every comparison.
inline double relative_error(const std::vector<float>& got, const std::vector<float>& want) {
  EXPECT_EQ(got.size(), want.size());
  double error = 0, size = 0;
  for (size_t i = 0; i < std::min(got.size(), want.size()); ++i) {
    error += (double{got[i]} - want[i]) * (double{got[i]} - want[i]);
    size += double{want[i]} * want[i];
  }
  return std::sqrt(error / std::max(size, 1e-30));
}

inline float rounded(float value, DType dtype = DType::kBF16) {
  return dtype == DType::kF32   ? value
         : dtype == DType::kF16 ? f16_to_f32(f32_to_f16(value))
                                : bf16_to_f32(f32_to_bf16(value));
}

// fp16 has three bits more than bf16, for which tolerances are given; a quarter leaves room for what is not rounded.
inline double tolerance_in(DType dtype, double bf16) { return dtype == DType::kF16 ? bf16 / 4 : bf16; }

inline Packing packing_of(DType dtype) {
  return dtype == DType::kF32 ? Packing::kFloat32 : dtype == DType::kF16 ? Packing::kFloat16 : Packing::kBFloat16;
}
inline WeightType weight_type_of(DType dtype) {
  return dtype == DType::kF32 ? WeightType::kF32 : dtype == DType::kF16 ? WeightType::kF16 : WeightType::kBF16;
}

inline RawTensor tensor_of(const std::vector<float>& values, int64_t rows, int64_t cols, WeightType type) {
  RawTensor tensor;
  tensor.name = "random";
  tensor.type = type;
  tensor.shape = {rows, cols};
  const size_t size = type == WeightType::kF32 ? 4 : 2;
  auto bytes = std::make_shared<std::vector<std::byte>>(values.size() * size);
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t half = type == WeightType::kF16 ? f32_to_f16(values[i]) : f32_to_bf16(values[i]);
    std::memcpy(bytes->data() + i * size, size == 4 ? static_cast<const void*>(&values[i]) : &half, size);
  }
  tensor.data = bytes->data();
  tensor.owned = bytes;
  return tensor;
}

class CudaBackendTest : public testing::Test {
 protected:
  void SetUp() override {
    if (num_cuda_devices() == 0) GTEST_SKIP() << "not run: no CUDA device";
    cuda_ = make_backend("cuda", {});
    RecordProperty("seed", std::to_string(seed_));
  }
  // The same work on both backends.
  template <class Work>
  void compare(double tolerance, Work&& work) {
    const std::vector<float> want = work(static_cast<Backend&>(naive_)), got = work(*cuda_);
    EXPECT_LE(relative_error(got, want), tolerance) << "seed " << seed_;
  }

  uint64_t seed_ = fresh_seed();
  std::mt19937_64 random_{seed_};
  NaiveBackend naive_;
  std::unique_ptr<Backend> cuda_;
};

}  // namespace tokenmill
