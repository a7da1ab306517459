// Products of many rows by our kernels against cuBLAS's and the naive ones.
#include <gtest/gtest.h>

#include <string>
#include <tuple>
#include <vector>

#include "ops/cuda/cuda_options.h"
#include "ops/cuda_testing.h"

namespace tokenmill {
namespace {

// Gated layers of so many rows and columns that both products and the activation are one kernel's: one round of tiles
// of a card of 132 multiprocessors, cut at the ends, and three of them. The same numbers whichever kernels make them,
// but for sums in another order that round otherwise.
TEST_F(CudaBackendTest, GatedLayersOfManyRows) {
  struct Case {
    int64_t rows, n, k;
    DType dtype;
    Activation activation;
    bool with_bias;
  };
  CudaOptions options;
  options.many_k_min = 64;
  const auto many = make_cuda_backend(options);
  options.many_rows_min = 1 << 30;
  const auto others = make_cuda_backend(options);
  for (const Case& test : {Case{740, 2808, 192, DType::kBF16, Activation::kSilu, false},
                           Case{768, 2816, 64, DType::kF16, Activation::kGeluTanh, true},
                           Case{2270, 2816, 64, DType::kBF16, Activation::kSilu, true}}) {
    SCOPED_TRACE("rows " + std::to_string(test.rows) + " n " + std::to_string(test.n));
    const auto [rows, n, k] = std::tuple(test.rows, test.n, test.k);
    auto x = normal_values(rows * k, random_), w = normal_values(n * k, random_), u = normal_values(n * k, random_);
    for (std::vector<float>* values : {&x, &w, &u}) {
      for (float& value : *values) value = rounded(value, test.dtype);
    }
    const std::vector<float> bias = test.with_bias ? normal_values(n, random_) : std::vector<float>();
    const WeightType type = weight_type_of(test.dtype);
    const RawTensor wt = tensor_of(w, n, k, type), ut = tensor_of(u, n, k, type);
    const RawTensor *wp = &wt, *up = &ut;
    const auto work = [&](Backend& ops) {
      const Packing packing = packing_of(test.dtype);
      const auto gate = ops.pack({&wp, 1}, bias, packing), other = ops.pack({&up, 1}, bias, packing);
      Placed in(ops, test.rows, test.k, x, 8);
      PlacedInput out(ops, test.rows, test.n, packing);
      ops.gated_linear(
          {.x = in.view(), .gate = gate.get(), .up = other.get(), .activation = test.activation, .out = out.view()});
      return out.read();
    };
    const std::vector<float> got = work(*many);
    EXPECT_LE(relative_error(got, work(naive_)), tolerance_in(test.dtype, 1e-2)) << "seed " << seed_;
    EXPECT_LE(relative_error(got, work(*others)), tolerance_in(test.dtype, 5e-4)) << "seed " << seed_;
  }
}

}  // namespace
}  // namespace tokenmill
