// rms_norm, add_rms_norm, gather_rows and softcap.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "ops/cpu/norm.h"
#include "ops/isas.h"
#include "ops/reference.h"

namespace tokenmill::reference {
namespace {

bool same_bits(const Table& a, const Table& b) {
  return std::memcmp(a.values().data(), b.values().data(), a.values().size() * sizeof(float)) == 0;
}

// The order that norm.h promises, in plain C++.
float rms_scale_by_definition(const std::vector<float>& row, float eps) {
  double chains[16] = {};
  for (size_t i = 0; i < row.size(); ++i) chains[i % 16] += static_cast<double>(row[i]) * static_cast<double>(row[i]);
  for (size_t half = 8; half >= 1; half /= 2) {
    for (size_t j = 0; j < half; ++j) chains[j] += chains[j + half];
  }
  const double mean = chains[0] / static_cast<double>(row.size());
  return static_cast<float>(1 / std::sqrt(mean + static_cast<double>(eps)));
}

TEST(Norm, ScaleHasTheOrderItPromises) {
  std::mt19937_64 random(4);
  std::normal_distribution<float> normal(0, 3);
  for (const int64_t n : {1, 2, 15, 16, 17, 31, 64, 576, 1000}) {
    for (int trial = 0; trial < 50; ++trial) {
      std::vector<float> row(static_cast<size_t>(n));
      for (float& value : row) value = normal(random) * std::exp(normal(random));
      EXPECT_EQ(rms_scale(row.data(), n, 1e-5f), rms_scale_by_definition(row, 1e-5f)) << n;
    }
  }
}

TEST(Norm, MatchesReferenceAndKeepsRowsApart) {
  std::mt19937_64 random(1);
  for (const int64_t cols : {1, 7, 8, 64, 576, 1153}) {
    for (const int64_t rows : {1, 3, 21}) {
      Table x(rows, cols), weight(1, cols, 0), sum_before(rows, cols);
      fill_normal(x, random, 2);
      fill_normal(weight, random);
      fill_normal(sum_before, random);
      const Norm norm = {weight.values().data(), 1e-6f};
      Table out_before(rows, cols), sum_expected = sum_before;
      for (int64_t i = 0; i < rows; ++i) {
        std::vector<double> row;
        for (int64_t j = 0; j < cols; ++j) row.push_back(x.at(i, j));
        const auto y = rms_norm(row, weight.values(), 1e-6);
        for (int64_t j = 0; j < cols; ++j) {
          out_before.at(i, j) = static_cast<float>(y[static_cast<size_t>(j)]);
          sum_expected.at(i, j) = static_cast<float>(sum_before.at(i, j) + y[static_cast<size_t>(j)]);
        }
      }
      for (const int threads : {1, 3}) {
        const auto backend = make_cpu_backend({.num_threads = threads, .isa = ""});
        Table out(rows, cols), sum = sum_before, in_place = x;
        backend->rms_norm(x.view(), norm, out.view());
        backend->add_rms_norm(x.view(), norm, sum.view());
        backend->rms_norm(in_place.view(), norm, in_place.view());
        EXPECT_TRUE(same_bits(out, in_place));
        for (int64_t i = 0; i < rows; ++i) {
          for (int64_t j = 0; j < cols; ++j) {
            EXPECT_NEAR(out.at(i, j), out_before.at(i, j), 1e-6 + 4e-7 * std::abs(out_before.at(i, j)));
            EXPECT_EQ(sum.at(i, j), sum_before.at(i, j) + out.at(i, j));
          }
          Table alone(1, cols);
          backend->rms_norm(x.view().slice_rows(i, 1), norm, alone.view());
          for (int64_t j = 0; j < cols; ++j) EXPECT_EQ(alone.at(0, j), out.at(i, j));
        }
      }
    }
  }
}

TEST(Elementwise, GatherRows) {
  std::mt19937_64 random(2);
  const auto backend = make_cpu_backend({.num_threads = 2, .isa = ""});
  Table x(40, 33);
  fill_normal(x, random);
  std::vector<int32_t> rows;
  for (int i = 0; i < 50; ++i) rows.push_back(static_cast<int32_t>(random() % 40));
  Table out(50, 33);
  backend->gather_rows(x.view(), rows, out.view());
  for (int64_t i = 0; i < 50; ++i) {
    for (int64_t j = 0; j < 33; ++j) EXPECT_EQ(out.at(i, j), x.at(rows[static_cast<size_t>(i)], j));
  }
}

TEST(Elementwise, Softcap) {
  std::mt19937_64 random(3);
  const auto backend = make_cpu_backend({.num_threads = 2, .isa = ""});
  for (const int64_t cols : {1, 9, 5001}) {
    Table x(3, cols);
    fill_normal(x, random, 40);
    x.at(1, 0) = 0;
    Table out = x;
    backend->softcap(out.view(), 30);
    for (int64_t i = 0; i < 3; ++i) {
      for (int64_t j = 0; j < cols; ++j) {
        EXPECT_NEAR(out.at(i, j), 30 * std::tanh(static_cast<double>(x.at(i, j)) / 30), 1e-5);
      }
    }
    for (size_t i = 0; i < x.values().size(); ++i) {
      if (x.values()[i] == -77.0f) {
        EXPECT_EQ(out.values()[i], -77.0f);  // the gaps between rows
      }
    }
  }
}

}  // namespace
}  // namespace tokenmill::reference
