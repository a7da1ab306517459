// Products of the CUDA backend against the naive one.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "ops/cuda/cuda_options.h"
#include "ops/cuda_testing.h"

namespace tokenmill {
namespace {

TEST_F(CudaBackendTest, LinearAndGatedLinear) {
  struct Shape {
    int64_t n, k;
  };
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    const Packing packing = packing_of(dtype);
    for (const Shape shape : {Shape{1, 2}, Shape{7, 33}, Shape{64, 64}, Shape{101, 576}, Shape{48, 4100}}) {
      for (const int64_t rows : {1, 2, 3, 4, 5, 8, 9, 33, 200}) {
        const auto [n, k] = shape;
        auto x = normal_values(rows * k, random_), w = normal_values(n * k, random_), u = normal_values(n * k, random_);
        const auto before = normal_values(rows * n, random_), bias = normal_values(n, random_);
        const auto norm_values = normal_values(k, random_);
        for (std::vector<float>* values : {&x, &w, &u}) {
          for (float& value : *values) value = rounded(value, dtype);
        }
        const WeightType type = weight_type_of(dtype);
        const RawTensor wt = tensor_of(w, n, k, type), ut = tensor_of(u, n, k, type);
        const RawTensor *wp = &wt, *up = &ut;
        const bool exact = packing == Packing::kFloat32;
        // Inputs that the type holds exactly; after a norm they are rounded, on the naive side not.
        for (const bool with_norm : {false, true}) {
          compare(exact || !with_norm ? 2e-5 : tolerance_in(dtype, 1e-2), [&](Backend& ops) {
            const auto weight = ops.pack({&wp, 1}, bias, packing), gate = ops.pack({&wp, 1}, {}, packing);
            const auto other = ops.pack({&up, 1}, bias, packing);
            Placed in(ops, rows, k, x), out(ops, rows, n), sum(ops, rows, n, before), gated(ops, rows, n);
            PlacedVector norm_weight(ops, norm_values);
            const Norm norm{norm_weight.data(), 1e-6f};
            const Norm* const input_norm = with_norm ? &norm : nullptr;
            ops.linear({.x = in.view(), .input_norm = input_norm, .weight = weight.get(), .out = out.view()});
            ops.linear({.x = in.view(),
                        .input_norm = input_norm,
                        .weight = weight.get(),
                        .add_to_out = true,
                        .out = sum.view()});
            std::vector<float> all = out.read();
            std::ranges::copy(sum.read(), std::back_inserter(all));
            for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
              ops.gated_linear({.x = in.view(),
                                .input_norm = input_norm,
                                .gate = gate.get(),
                                .up = other.get(),
                                .activation = activation,
                                .out = gated.view()});
              std::ranges::copy(gated.read(), std::back_inserter(all));
            }
            return all;
          });
        }
      }
    }
  }
}

// Shapes and alignments of real models: what the streaming kernels take, and what they hand on to each other.
class CudaAlignedProducts : public CudaBackendTest, public testing::WithParamInterface<DType> {};

TEST_P(CudaAlignedProducts, AndTheirRoundedActivations) {
  const DType dtype = GetParam();
  const Packing packing = packing_of(dtype);
  const WeightType type = weight_type_of(dtype);
  struct Shape {
    int64_t n, k;
  };
  for (const Shape shape : {Shape{16, 64}, Shape{300, 576}, Shape{304, 1088}, Shape{1032, 4096}, Shape{40, 7168}}) {
    for (const int64_t rows : {1, 2, 3, 5, 8, 9, 16, 17, 32, 40, 64, 130}) {
      const auto [n, k] = shape;
      if (n > 1000 && rows != 1 && rows != 3 && rows != 8 && rows != 40) continue;  // the naive side is slow
      SCOPED_TRACE("n " + std::to_string(n) + " k " + std::to_string(k) + " rows " + std::to_string(rows));
      // Gated outputs stay in fp16's range.
      auto x = normal_values(rows * k, random_), w = normal_values(n * k, random_, 0.1);
      auto u = normal_values(n * k, random_, 0.1), d = normal_values(24 * n, random_);
      for (std::vector<float>* values : {&x, &w, &u, &d}) {
        for (float& value : *values) value = rounded(value, dtype);
      }
      const auto before = normal_values(rows * 24, random_), bias = normal_values(n, random_);
      const auto norm_values = normal_values(k, random_);
      const RawTensor wt = tensor_of(w, n, k, type), ut = tensor_of(u, n, k, type);
      const RawTensor dt = tensor_of(d, 24, n, type);
      const RawTensor *wp = &wt, *up = &ut, *dp = &dt;
      for (const bool with_norm : {false, true}) {
        // Normed inputs and the gate's outputs are rounded, on the naive side not.
        std::vector<float> exact[2];
        int which = 0;
        const auto work = [&](Backend& ops) {
          const auto weight = ops.pack({&wp, 1}, bias, packing);
          const auto other = ops.pack({&up, 1}, {}, packing);
          const auto down = ops.pack({&dp, 1}, {}, packing);
          Placed in(ops, rows, k, x, 8), out(ops, rows, n, 8), sum(ops, rows, 24, before, 8);
          PlacedInput gated(ops, rows, n, packing);
          PlacedVector norm_weight(ops, norm_values);
          const Norm norm{norm_weight.data(), 1e-6f};
          const Norm* const input_norm = with_norm ? &norm : nullptr;
          ops.linear({.x = in.view(), .input_norm = input_norm, .weight = weight.get(), .out = out.view()});
          exact[which++] = out.read();
          ops.gated_linear(
              {.x = in.view(), .input_norm = input_norm, .gate = weight.get(), .up = other.get(), .out = gated.view()});
          ops.linear({.x = gated.view(), .weight = down.get(), .add_to_out = true, .out = sum.view()});
          std::vector<float> all = gated.read();
          for (float& value : all) value *= 100 / static_cast<float>(k);  // of the size of the others
          for (const float value : sum.read())
            all.push_back(value * 100 / static_cast<float>(k) / std::sqrt(static_cast<float>(n)));
          return all;
        };
        compare(tolerance_in(dtype, 1e-2), work);
        EXPECT_LE(relative_error(exact[1], exact[0]), with_norm ? tolerance_in(dtype, 5e-3) : 2e-5) << "seed " << seed_;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, CudaAlignedProducts, testing::Values(DType::kBF16, DType::kF16),
                         [](const auto& info) { return info.param == DType::kF16 ? "Float16" : "BFloat16"; });

// What is beyond fp16's range becomes its largest value: inputs, products of gate and up, what the gated layer hands
// on.
TEST_F(CudaBackendTest, Float16Saturates) {
  constexpr int64_t kN = 16;
  constexpr float kLargest = 65504;
  for (const int64_t k : {33, 64}) {
    const std::vector<float> ones(static_cast<size_t>(kN * k), 1.0f), tens(static_cast<size_t>(kN * k), 10.0f);
    const std::vector<float> small(static_cast<size_t>(kN * k), 1 / (300.0f * static_cast<float>(k)));
    const RawTensor one = tensor_of(ones, kN, k, WeightType::kF16), ten = tensor_of(tens, kN, k, WeightType::kF32);
    const RawTensor tiny = tensor_of(small, kN, k, WeightType::kF32);
    const RawTensor *one_part = &one, *ten_part = &ten, *tiny_part = &tiny;
    for (const bool deterministic : {false, true}) {
      const auto ops = make_backend("cuda", {}, deterministic);
      const auto weight = ops->pack({&one_part, 1}, {}, Packing::kFloat16);
      const auto gate = ops->pack({&ten_part, 1}, {}, Packing::kFloat16);
      const auto up = ops->pack({&tiny_part, 1}, {}, Packing::kFloat16);
      for (const int64_t rows : {1, 3, 12, 40}) {
        SCOPED_TRACE("k " + std::to_string(k) + " rows " + std::to_string(rows));
        std::vector<float> x(static_cast<size_t>(rows * k), 0.0f);
        for (int64_t row = 0; row < rows; ++row) x[static_cast<size_t>(row * k)] = row % 2 == 0 ? 1e6f : -1e6f;
        Placed huge(*ops, rows, k, x, 8), out(*ops, rows, kN, 8);
        ops->linear({.x = huge.view(), .weight = weight.get(), .out = out.view()});
        const std::vector<float> sums = out.read();
        for (size_t i = 0; i < sums.size(); ++i) {
          EXPECT_EQ(sums[i], i / kN % 2 == 0 ? kLargest : -kLargest) << i;
        }
        const std::vector<float> plain(static_cast<size_t>(rows * k), 300.0f);
        Placed in(*ops, rows, k, plain, 8);
        PlacedInput gated(*ops, rows, kN, Packing::kFloat16);
        ops->gated_linear({.x = in.view(), .gate = gate.get(), .up = up.get(), .out = gated.view()});
        for (const float value : gated.read()) EXPECT_NEAR(value, kLargest, 700);
      }
    }
  }
}

// Matrices so tall that every width of tile of the kernels for tens of rows is the best for one of them.
TEST_F(CudaBackendTest, ProductsOfTensOfRows) {
  constexpr int64_t kK = 192;
  for (const int64_t n : {1536, 2048, 3072, 4096, 5120, 6144, 8192, 12288, 14336, 16384}) {
    for (const int64_t rows : {19, 33, 64}) {
      const DType dtype = rows == 33 ? DType::kF16 : n % 4096 == 0 ? DType::kBF16 : DType::kF16;
      SCOPED_TRACE("n " + std::to_string(n) + " rows " + std::to_string(rows));
      auto x = normal_values(rows * kK, random_), w = normal_values(n * kK, random_),
           u = normal_values(n * kK, random_);
      for (std::vector<float>* values : {&x, &w, &u}) {
        for (float& value : *values) value = rounded(value, dtype);
      }
      const auto before = normal_values(rows * n, random_), bias = normal_values(n, random_);
      const RawTensor wt = tensor_of(w, n, kK, weight_type_of(dtype)), ut = tensor_of(u, n, kK, weight_type_of(dtype));
      const RawTensor *wp = &wt, *up = &ut;
      compare(2e-5, [&](Backend& ops) {
        const auto weight = ops.pack({&wp, 1}, bias, packing_of(dtype));
        Placed in(ops, rows, kK, x, 8), sum(ops, rows, n, before, 8);
        ops.linear({.x = in.view(), .weight = weight.get(), .add_to_out = true, .out = sum.view()});
        return sum.read();
      });
      compare(tolerance_in(dtype, 1e-2), [&](Backend& ops) {
        const auto weight = ops.pack({&wp, 1}, bias, packing_of(dtype)),
                   other = ops.pack({&up, 1}, {}, packing_of(dtype));
        Placed in(ops, rows, kK, x, 8);
        PlacedInput gated(ops, rows, n, packing_of(dtype));
        ops.gated_linear({.x = in.view(), .gate = weight.get(), .up = other.get(), .out = gated.view()});
        return gated.read();
      });
    }
  }
}

// The kernels that others come before on this card.
TEST_F(CudaBackendTest, ProductsByKernelsOfOtherCards) {
  constexpr int64_t kN = 304, kK = 1088;
  for (const CudaOptions& options :
       {CudaOptions{.stream_rows_max = 32, .tens_rows_min = 33}, CudaOptions{.stream_rows_max = 8, .tens_rows_min = 9},
        CudaOptions{.stream_rows_max = 8, .wide_rows_max = 64, .tens_rows_min = 9},
        CudaOptions{.stream_rows_max = 0, .tens_rows_max = 0}}) {
    cuda_ = make_cuda_backend(options);
    for (const int64_t rows : {8, 9, 16, 32, 50, 64}) {
      SCOPED_TRACE("rows " + std::to_string(rows) + " stream " + std::to_string(options.stream_rows_max) + " wide " +
                   std::to_string(options.wide_rows_max));
      const auto x = normal_values(rows * kK, random_), w = normal_values(kN * kK, random_, 0.1);
      const auto u = normal_values(kN * kK, random_, 0.1), before = normal_values(rows * kN, random_);
      const auto bias = normal_values(kN, random_), norm_values = normal_values(kK, random_);
      const RawTensor wt = tensor_of(w, kN, kK, WeightType::kF32), ut = tensor_of(u, kN, kK, WeightType::kF32);
      const RawTensor *wp = &wt, *up = &ut;
      compare(2e-2, [&](Backend& ops) {
        const auto weight = ops.pack({&wp, 1}, bias, Packing::kBFloat16);
        const auto other = ops.pack({&up, 1}, {}, Packing::kBFloat16);
        PlacedVector norm_weight(ops, norm_values);
        const Norm norm{norm_weight.data(), 1e-6f};
        Placed in(ops, rows, kK, x, 8), sum(ops, rows, kN, before, 8), gated(ops, rows, kN, 8);
        ops.linear(
            {.x = in.view(), .input_norm = &norm, .weight = weight.get(), .add_to_out = true, .out = sum.view()});
        ops.gated_linear(
            {.x = in.view(), .input_norm = &norm, .gate = weight.get(), .up = other.get(), .out = gated.view()});
        std::vector<float> all = sum.read();
        std::ranges::copy(gated.read(), std::back_inserter(all));
        return all;
      });
    }
  }
}

}  // namespace
}  // namespace tokenmill
