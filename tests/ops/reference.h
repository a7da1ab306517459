// Naive references in double for the ops' tests: written from the definitions, sharing no code with the backends.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "base/dtype.h"
#include "base/tensor.h"

namespace tokenmill::reference {

// A matrix that owns its floats, with a stride wider than its columns so that tests see confusion of the two.
class Table {
 public:
  Table(int64_t rows, int64_t cols, int64_t extra = 3)
      : rows_(rows), cols_(cols), stride_(cols + extra), values_(static_cast<size_t>(rows * stride_), -77.0f) {}
  Matrix view() { return {values_.data(), rows_, cols_, stride_, DType::kF32}; }
  float& at(int64_t row, int64_t col) { return values_[static_cast<size_t>(row * stride_ + col)]; }
  float at(int64_t row, int64_t col) const { return values_[static_cast<size_t>(row * stride_ + col)]; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  // Bits of the whole table, the gaps between rows included.
  const std::vector<float>& values() const { return values_; }

 private:
  int64_t rows_, cols_, stride_;
  std::vector<float> values_;
};

inline void fill_normal(Table& table, std::mt19937_64& random, double deviation = 1) {
  std::normal_distribution<double> normal(0, deviation);
  for (int64_t i = 0; i < table.rows(); ++i) {
    for (int64_t j = 0; j < table.cols(); ++j) table.at(i, j) = static_cast<float>(normal(random));
  }
}

inline std::vector<double> rms_norm(const std::vector<double>& x, const std::vector<float>& weight, double eps) {
  double squares = 0;
  for (const double value : x) squares += value * value;
  const double scale = 1 / std::sqrt(squares / static_cast<double>(x.size()) + eps);
  std::vector<double> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = x[i] * scale * weight[i];
  return y;
}

// Half-split rotation of the first 2 * angles.size() values.
inline void rotate(std::vector<double>& head, const std::vector<double>& angles, double factor) {
  const size_t half = angles.size();
  for (size_t i = 0; i < half; ++i) {
    const double c = std::cos(angles[i]) * factor, s = std::sin(angles[i]) * factor;
    const double a = head[i], b = head[i + half];
    head[i] = a * c - b * s;
    head[i + half] = b * c + a * s;
  }
}

// Softmax attention of one query over keys [0, position], limited to the last `window` (0: all).
inline std::vector<double> attend(const std::vector<double>& query, const std::vector<std::vector<double>>& keys,
                                  const std::vector<std::vector<double>>& values, int32_t position, int32_t window,
                                  double scale, double softcap) {
  const int32_t first = window > 0 ? std::max(0, position - window + 1) : 0;
  std::vector<double> scores;
  double peak = -std::numeric_limits<double>::infinity();
  for (int32_t j = first; j <= position; ++j) {
    double score = 0;
    for (size_t d = 0; d < query.size(); ++d) score += query[d] * keys[static_cast<size_t>(j)][d];
    score *= scale;
    if (softcap > 0) score = softcap * std::tanh(score / softcap);
    scores.push_back(score);
    peak = std::max(peak, score);
  }
  double total = 0;
  std::vector<double> out(query.size(), 0.0);
  for (size_t i = 0; i < scores.size(); ++i) {
    const double weight = std::exp(scores[i] - peak);
    total += weight;
    for (size_t d = 0; d < out.size(); ++d) out[d] += weight * values[static_cast<size_t>(first) + i][d];
  }
  for (double& value : out) value /= total;
  return out;
}

}  // namespace tokenmill::reference
