// Products of the CUDA backend against the naive one.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "ops/cuda_testing.h"

namespace tokenmill {
namespace {

TEST_F(CudaBackendTest, LinearAndGatedLinear) {
  struct Shape {
    int64_t n, k;
  };
  for (const Packing packing : {Packing::kFloat32, Packing::kBFloat16}) {
    for (const Shape shape : {Shape{1, 2}, Shape{7, 33}, Shape{64, 64}, Shape{101, 576}, Shape{48, 4100}}) {
      for (const int64_t rows : {1, 2, 3, 4, 5, 8, 9, 33, 200}) {
        const auto [n, k] = shape;
        auto x = normal_values(rows * k, random_), w = normal_values(n * k, random_), u = normal_values(n * k, random_);
        const auto before = normal_values(rows * n, random_), bias = normal_values(n, random_);
        const auto norm_values = normal_values(k, random_);
        if (packing == Packing::kBFloat16) {
          for (std::vector<float>* values : {&x, &w, &u}) {
            for (float& value : *values) value = rounded(value);
          }
        }
        const WeightType type = packing == Packing::kFloat32 ? WeightType::kF32 : WeightType::kBF16;
        const RawTensor wt = tensor_of(w, n, k, type), ut = tensor_of(u, n, k, type);
        const RawTensor *wp = &wt, *up = &ut;
        const bool exact = packing == Packing::kFloat32;
        // Inputs that bf16 holds exactly; after a norm they are rounded, on the naive side not.
        for (const bool with_norm : {false, true}) {
          compare(exact || !with_norm ? 2e-5 : 1e-2, [&](Backend& ops) {
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
TEST_F(CudaBackendTest, AlignedProductsAndTheirBf16Activations) {
  struct Shape {
    int64_t n, k;
  };
  for (const Shape shape : {Shape{16, 64}, Shape{300, 576}, Shape{304, 1088}, Shape{1032, 4096}, Shape{40, 7168}}) {
    for (const int64_t rows : {1, 2, 3, 5, 8, 9, 16, 17, 32, 40, 64, 130}) {
      const auto [n, k] = shape;
      if (n > 1000 && rows != 1 && rows != 3 && rows != 8 && rows != 40) continue;  // the naive side is slow
      SCOPED_TRACE("n " + std::to_string(n) + " k " + std::to_string(k) + " rows " + std::to_string(rows));
      auto x = normal_values(rows * k, random_), w = normal_values(n * k, random_), u = normal_values(n * k, random_);
      auto d = normal_values(24 * n, random_);
      for (std::vector<float>* values : {&x, &w, &u, &d}) {
        for (float& value : *values) value = rounded(value);
      }
      const auto before = normal_values(rows * 24, random_), bias = normal_values(n, random_);
      const auto norm_values = normal_values(k, random_);
      const RawTensor wt = tensor_of(w, n, k, WeightType::kBF16), ut = tensor_of(u, n, k, WeightType::kBF16);
      const RawTensor dt = tensor_of(d, 24, n, WeightType::kBF16);
      const RawTensor *wp = &wt, *up = &ut, *dp = &dt;
      for (const bool with_norm : {false, true}) {
        // Normed inputs and the gate's outputs are rounded, on the naive side not.
        std::vector<float> exact[2];
        int which = 0;
        const auto work = [&](Backend& ops) {
          const auto weight = ops.pack({&wp, 1}, bias, Packing::kBFloat16);
          const auto other = ops.pack({&up, 1}, {}, Packing::kBFloat16);
          const auto down = ops.pack({&dp, 1}, {}, Packing::kBFloat16);
          Placed in(ops, rows, k, x, 8), out(ops, rows, n, 8), sum(ops, rows, 24, before, 8);
          PlacedInput gated(ops, rows, n);
          PlacedVector norm_weight(ops, norm_values);
          const Norm norm{norm_weight.data(), 1e-6f};
          const Norm* const input_norm = with_norm ? &norm : nullptr;
          ops.linear({.x = in.view(), .input_norm = input_norm, .weight = weight.get(), .out = out.view()});
          exact[which++] = out.read();
          ops.gated_linear(
              {.x = in.view(), .input_norm = input_norm, .gate = weight.get(), .up = other.get(), .out = gated.view()});
          ops.linear({.x = gated.view(), .weight = down.get(), .add_to_out = true, .out = sum.view()});
          std::vector<float> all = gated.read();
          for (float& value : all) value /= static_cast<float>(k);  // of the size of the others
          for (const float value : sum.read())
            all.push_back(value / static_cast<float>(k) / std::sqrt(static_cast<float>(n)));
          return all;
        };
        compare(1e-2, work);
        EXPECT_LE(relative_error(exact[1], exact[0]), with_norm ? 5e-3 : 2e-5) << "seed " << seed_;
      }
    }
  }
}

// Matrices so tall that every width of tile of the kernels for tens of rows is the best for one of them.
TEST_F(CudaBackendTest, ProductsOfTensOfRows) {
  constexpr int64_t kK = 192;
  for (const int64_t n : {4096, 6144, 8192, 12288, 14336, 16384}) {
    for (const int64_t rows : {19, 33, 64}) {
      SCOPED_TRACE("n " + std::to_string(n) + " rows " + std::to_string(rows));
      auto x = normal_values(rows * kK, random_), w = normal_values(n * kK, random_),
           u = normal_values(n * kK, random_);
      for (std::vector<float>* values : {&x, &w, &u}) {
        for (float& value : *values) value = rounded(value);
      }
      const auto before = normal_values(rows * n, random_), bias = normal_values(n, random_);
      const RawTensor wt = tensor_of(w, n, kK, WeightType::kBF16), ut = tensor_of(u, n, kK, WeightType::kBF16);
      const RawTensor *wp = &wt, *up = &ut;
      compare(2e-5, [&](Backend& ops) {
        const auto weight = ops.pack({&wp, 1}, bias, Packing::kBFloat16);
        Placed in(ops, rows, kK, x, 8), sum(ops, rows, n, before, 8);
        ops.linear({.x = in.view(), .weight = weight.get(), .add_to_out = true, .out = sum.view()});
        return sum.read();
      });
      compare(1e-2, [&](Backend& ops) {
        const auto weight = ops.pack({&wp, 1}, bias, Packing::kBFloat16),
                   other = ops.pack({&up, 1}, {}, Packing::kBFloat16);
        Placed in(ops, rows, kK, x, 8);
        PlacedInput gated(ops, rows, n);
        ops.gated_linear({.x = in.view(), .gate = weight.get(), .up = other.get(), .out = gated.view()});
        return gated.read();
      });
    }
  }
}

}  // namespace
}  // namespace tokenmill
