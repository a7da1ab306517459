// Matrix products against the canonical order of ops/cpu/linear.h (bit for bit, on every instruction set the processor
// has), against double precision (bounded), and against themselves over batches, threads and fused forms.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iostream>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "ops/backend.h"
#include "ops/cpu/cpu_features.h"
#include "ops/cpu/float_mode.h"
#include "ops/cpu/linear.h"
#include "ops/cpu/vector_math.h"
#include "ops/dequantize.h"
#include "ops/linear_testing.h"
#include "tokenmill/error.h"

namespace tokenmill {
namespace {

using testing_linear::all_types;
using testing_linear::FloatMatrix;
using testing_linear::random_matrix;
using testing_linear::random_tensor;
using testing_linear::same_bits;

constexpr int64_t kRowCounts[] = {1, 2, 3, 4, 5, 8, 16, 17, 33};
constexpr Packing kPackings[] = {Packing::kFloat32, Packing::kBFloat16, Packing::kNative};

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const char* name : {"avx2", "avx512", "amx"}) {
    try {
      choose_isa(name);
      names.push_back(name);
    } catch (const Error&) {
      std::cout << "not run: this processor has no " << name << "\n";
    }
  }
  return names;
}

std::unique_ptr<Backend> make_backend(const std::string& isa, int threads = 2) {
  return make_cpu_backend({threads, isa});
}

FloatMatrix run_linear(Backend& backend, const Weight& weight, const FloatMatrix& x, const Norm* norm = nullptr,
                       const FloatMatrix* add_to = nullptr) {
  FloatMatrix out(x.rows, weight.n);
  if (add_to != nullptr) out = *add_to;
  LinearArgs args;
  args.x = x.view();
  args.input_norm = norm;
  args.weight = &weight;
  args.add_to_out = add_to != nullptr;
  args.out = out.view();
  backend.linear(args);
  return out;
}

// --- the canonical orders, one output at a time ---------------------------------------------------------------------
float canonical_float32(const float* x, const float* w, int64_t k) {
  float acc = 0;
  for (int64_t i = 0; i < k; ++i) acc = std::fma(x[i], w[i], acc);
  return acc;
}

float canonical_bfloat16(const float* x, const float* w, int64_t k) {
  float acc = 0;
  for (int64_t begin = 0; begin < k; begin += 32) {
    float sums[2] = {0, 0};
    for (int64_t i = begin; i < std::min(k, begin + 32); ++i) {
      const float a = bf16_to_f32(f32_to_bf16(x[i])), b = bf16_to_f32(f32_to_bf16(w[i]));
      sums[i % 2] = std::fma(a, b, sums[i % 2]);
    }
    acc = acc + (sums[0] + sums[1]);
  }
  return acc;
}

float canonical_quantized(const float* x, WeightType type, const std::byte* row, int64_t k) {
  const QuantFormat& format = quant_format(type);
  QuantBlock block;
  float acc = 0;
  for (int64_t begin = 0; begin < k; begin += 32) {
    if (begin % format.block_values == 0) {
      unpack_block(type, row + begin / format.block_values * info(type).block_bytes, block);
    }
    float largest = 0;
    for (int i = 0; i < 32; ++i) largest = std::max(largest, std::fabs(x[begin + i]));
    const bool tiny = largest < kTinyGroup;
    const float scale_x = tiny ? 0 : largest / 127.0f, inverse = tiny ? 0 : 127.0f / largest;
    for (int first = 0; first < 32; first += format.group_values) {
      const int offset = static_cast<int>(begin % format.block_values) + first;
      const int group = offset / format.group_values;
      int32_t dot = 0, sum = 0;
      for (int i = 0; i < format.group_values; ++i) {
        const int code = static_cast<int>(std::nearbyint(x[begin + first + i] * inverse));
        dot += code * (block.codes[offset + i] - format.code_zero);
        sum += code;
      }
      acc = std::fma(static_cast<float>(dot), scale_x * group_scale(format, block, group), acc);
      if (format.has_min) acc = std::fma(scale_x * static_cast<float>(sum), group_min(format, block, group), acc);
    }
  }
  return acc;
}

FloatMatrix canonical(const FloatMatrix& x, const RawTensor& tensor, Packing packing) {
  const FloatModeScope mode;
  FloatMatrix out(x.rows, tensor.rows());
  std::vector<float> w(static_cast<size_t>(x.cols));
  for (int64_t n = 0; n < tensor.rows(); ++n) {
    const std::byte* const row = tensor.data + static_cast<size_t>(n) * tensor.row_bytes();
    dequantize_row(tensor.type, row, x.cols, w.data());
    for (int64_t m = 0; m < x.rows; ++m) {
      float& value = out.row(m)[n];
      if (packing == Packing::kFloat32) {
        value = canonical_float32(x.row(m), w.data(), x.cols);
      } else if (packing == Packing::kNative && info(tensor.type).quantized) {
        value = canonical_quantized(x.row(m), tensor.type, row, x.cols);
      } else {
        value = canonical_bfloat16(x.row(m), w.data(), x.cols);
      }
    }
  }
  return out;
}

// Odd sizes: whole tiles and parts of them, K with and without a rest.
std::vector<std::pair<int64_t, int64_t>> sizes_for(WeightType type) {
  const int block = info(type).block_values;
  if (block == 256) return {{1, 256}, {37, 768}};
  if (block == 32) return {{1, 32}, {37, 96}, {90, 480}};
  return {{1, 1}, {5, 31}, {37, 100}, {90, 353}};
}

// One test a weight type: every packing, size, row count and instruction set.
class LinearTypes : public ::testing::TestWithParam<WeightType> {};

TEST_P(LinearTypes, EqualsTheCanonicalOrderBitForBit) {
  const WeightType type = GetParam();
  std::mt19937 random(7);
  std::vector<std::unique_ptr<Backend>> backends;
  for (const std::string& isa : available_isas()) backends.push_back(make_backend(isa));
  for (const auto& [n, k] : sizes_for(type)) {
    const auto tensor = random_tensor(type, n, k, random);
    const RawTensor* const part = tensor.get();
    const FloatMatrix x = random_matrix(33, k, random);
    for (const Packing packing : kPackings) {
      const FloatMatrix expected = canonical(x, *tensor, packing);
      for (const auto& backend : backends) {
        const auto weight = backend->pack({&part, 1}, {}, packing);
        for (const int64_t rows : kRowCounts) {
          const FloatMatrix out = run_linear(*backend, *weight, x.top(rows));
          ASSERT_TRUE(same_bits(out, expected.top(rows)))
              << backend->description() << ", packing " << static_cast<int>(packing) << ", n " << n << ", k " << k
              << ", rows " << rows;
        }
      }
    }
  }
}

// The bound is worked out from the roundings of the inputs and weights, not from what the kernels give.
TEST_P(LinearTypes, IsNearDoublePrecision) {
  const WeightType type = GetParam();
  std::mt19937 random(11);
  const auto backend = make_backend("");
  for (const auto& [n, k] : sizes_for(type)) {
    const auto tensor = random_tensor(type, n, k, random);
    const RawTensor* const part = tensor.get();
    const FloatMatrix x = random_matrix(5, k, random);
    std::vector<float> w(static_cast<size_t>(k));
    for (const Packing packing : kPackings) {
      const bool quantized = packing == Packing::kNative && info(type).quantized;
      const auto weight = backend->pack({&part, 1}, {}, packing);
      const FloatMatrix out = run_linear(*backend, *weight, x);
      for (int64_t row = 0; row < n; ++row) {
        dequantize_row(type, tensor->data + static_cast<size_t>(row) * tensor->row_bytes(), k, w.data());
        for (int64_t m = 0; m < x.rows; ++m) {
          double sum = 0, magnitude = 0, rounding = 0;
          for (int64_t i = 0; i < k; ++i) {
            const double product = static_cast<double>(x.row(m)[i]) * static_cast<double>(w[static_cast<size_t>(i)]);
            sum += product;
            magnitude += std::fabs(product);
            if (!quantized) continue;
            float largest = 0;
            for (int64_t j = i / 32 * 32; j < i / 32 * 32 + 32; ++j)
              largest = std::max(largest, std::fabs(x.row(m)[j]));
            rounding += std::fabs(static_cast<double>(w[static_cast<size_t>(i)])) * largest / 127 * 0.5001;
          }
          if (packing != Packing::kFloat32 && !quantized) rounding = magnitude * 0x1p-7 * 1.01;
          // fp32 sums: K roundings; minimums and products may cancel, so the terms count, not their sum.
          const double bound = rounding + (magnitude + rounding) * static_cast<double>(k + 16) * 0x1p-22 + 1e-30;
          ASSERT_LE(std::fabs(out.row(m)[row] - sum), bound) << "packing " << static_cast<int>(packing) << " k " << k;
        }
      }
    }
  }
}

TEST_P(LinearTypes, EmbedGivesEveryValueExactly) {
  const WeightType type = GetParam();
  std::mt19937 random(13);
  for (const std::string& isa : available_isas()) {
    const auto backend = make_backend(isa);
    for (const auto& [n, k] : sizes_for(type)) {
      const auto tensor = random_tensor(type, n, k, random);
      const RawTensor* const part = tensor.get();
      std::vector<int32_t> ids;
      for (int64_t i = 0; i < n; ++i) ids.push_back(static_cast<int32_t>(n - 1 - i));
      FloatMatrix expected(n, k);
      for (int64_t i = 0; i < n; ++i) {
        dequantize_row(type, tensor->data + static_cast<size_t>(n - 1 - i) * tensor->row_bytes(), k, expected.row(i));
      }
      for (const Packing packing : kPackings) {
        const bool rounds = packing == Packing::kBFloat16 || (packing == Packing::kNative && !info(type).quantized);
        FloatMatrix wanted = expected;
        for (float& value : wanted.values) value = 3.0f * (rounds ? bf16_to_f32(f32_to_bf16(value)) : value);
        FloatMatrix out(n, k);
        backend->embed(ids, *backend->pack({&part, 1}, {}, packing), 3.0f, out.view());
        ASSERT_TRUE(same_bits(out, wanted)) << "packing " << static_cast<int>(packing) << ", n " << n << ", k " << k;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, LinearTypes, ::testing::ValuesIn(all_types()),
                         [](const auto& param) { return std::string(tokenmill::info(param.param).name); });

// Sizes that are cut into many pieces over rows and columns: the same bits on 1, 2 and 3 threads, on every instruction
// set, and for a row alone.
TEST(Linear, ManyPiecesAreTheSameBitsOnAnyNumberOfThreads) {
  std::mt19937 random(17);
  for (const WeightType type : {WeightType::kF32, WeightType::kQ8_0, WeightType::kQ4_0, WeightType::kQ6K}) {
    const int64_t n = 1100, k = 512;
    const auto tensor = random_tensor(type, n, k, random);
    const RawTensor* const part = tensor.get();
    const FloatMatrix x = random_matrix(205, k, random);
    for (const Packing packing : {Packing::kFloat32, Packing::kNative}) {
      FloatMatrix expected(0, 0);
      for (const std::string& isa : available_isas()) {
        for (const int threads : {1, 2, 3}) {
          const auto backend = make_backend(isa, threads);
          const auto weight = backend->pack({&part, 1}, {}, packing);
          const FloatMatrix out = run_linear(*backend, *weight, x);
          if (expected.rows == 0) expected = out;
          ASSERT_TRUE(same_bits(out, expected)) << isa << ", " << threads << " threads, " << info(type).name;
          for (const int64_t row : {0, 100, 204}) {
            ASSERT_TRUE(same_bits(run_linear(*backend, *weight, x.middle(row, 1)), expected.middle(row, 1)));
          }
        }
      }
    }
  }
}

TEST(Linear, PartsOfDifferentTypesAreOneWeight) {
  std::mt19937 random(19);
  const int64_t k = 256;
  const auto q = random_tensor(WeightType::kQ4K, 33, k, random, "q");
  const auto key = random_tensor(WeightType::kQ4K, 20, k, random, "k");
  const auto v = random_tensor(WeightType::kQ6K, 19, k, random, "v");
  const auto f = random_tensor(WeightType::kF16, 7, k, random, "f");
  const RawTensor* const parts[] = {q.get(), key.get(), v.get(), f.get()};
  std::vector<float> bias(79);
  for (size_t i = 0; i < bias.size(); ++i) bias[i] = 0.25f * static_cast<float>(i);
  const FloatMatrix x = random_matrix(6, k, random);
  for (const std::string& isa : available_isas()) {
    const auto backend = make_backend(isa);
    for (const Packing packing : kPackings) {
      const auto weight = backend->pack(parts, bias, packing);
      EXPECT_EQ(weight->n, 79);
      EXPECT_EQ(weight->k, k);
      const FloatMatrix out = run_linear(*backend, *weight, x);
      int64_t column = 0;
      for (const RawTensor* part : parts) {
        const FloatMatrix expected = canonical(x, *part, packing);
        for (int64_t n = 0; n < part->rows(); ++n, ++column) {
          for (int64_t m = 0; m < x.rows; ++m) {
            const float wanted = expected.row(m)[n] + bias[static_cast<size_t>(column)];
            ASSERT_EQ(out.row(m)[column], wanted) << part->name << " row " << n << " " << isa;
          }
        }
      }
    }
  }
}

TEST(Linear, FusedFormsEqualTheirPartsBitForBit) {
  std::mt19937 random(23);
  const int64_t n = 70, k = 320;
  std::vector<float> norm_weight(k);
  for (float& value : norm_weight) value = std::uniform_real_distribution<float>(0.5f, 1.5f)(random);
  const Norm norm{norm_weight.data(), 1e-5f};
  for (const std::string& isa : available_isas()) {
    const auto backend = make_backend(isa);
    for (const WeightType type : {WeightType::kF32, WeightType::kQ8_0, WeightType::kQ4_1}) {
      const auto gate_tensor = random_tensor(type, n, k, random), up_tensor = random_tensor(type, n, k, random);
      const RawTensor* const gate_part = gate_tensor.get();
      const RawTensor* const up_part = up_tensor.get();
      std::vector<float> bias(static_cast<size_t>(n), 0.5f);
      for (const Packing packing : kPackings) {
        const auto gate = backend->pack({&gate_part, 1}, bias, packing), up = backend->pack({&up_part, 1}, {}, packing);
        for (const int64_t rows : {1, 3, 9, 120}) {
          const FloatMatrix x = random_matrix(rows, k, random);
          FloatMatrix normed(rows, k);
          backend->rms_norm(x.view(), norm, normed.view());
          const FloatMatrix gates = run_linear(*backend, *gate, normed), ups = run_linear(*backend, *up, normed);
          ASSERT_TRUE(same_bits(run_linear(*backend, *gate, x, &norm), gates)) << isa << " rows " << rows;

          const FloatMatrix sum = run_linear(*backend, *gate, normed, nullptr, &ups);
          for (size_t i = 0; i < sum.values.size(); ++i) ASSERT_EQ(sum.values[i], ups.values[i] + gates.values[i]);

          for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
            FloatMatrix out(rows, n);
            GatedLinearArgs args;
            args.x = x.view();
            args.input_norm = &norm;
            args.gate = gate.get();
            args.up = up.get();
            args.activation = activation;
            args.out = out.view();
            backend->gated_linear(args);
            const FloatModeScope mode;
            for (size_t i = 0; i < out.values.size(); ++i) {
              const float g = gates.values[i];
              const float act = activation == Activation::kSilu ? vector_math::silu(g) : vector_math::gelu_tanh(g);
              ASSERT_EQ(out.values[i], act * ups.values[i]) << isa << " rows " << rows;
            }
          }
        }
      }
    }
  }
}

TEST(Linear, GateAndUpOfDifferentFormatsWork) {
  std::mt19937 random(29);
  const auto gate_tensor = random_tensor(WeightType::kQ4K, 40, 256, random);
  const auto up_tensor = random_tensor(WeightType::kQ6K, 40, 256, random);
  const RawTensor* const gate_part = gate_tensor.get();
  const RawTensor* const up_part = up_tensor.get();
  const FloatMatrix x = random_matrix(4, 256, random);
  const auto backend = make_backend("");
  const auto gate = backend->pack({&gate_part, 1}, {}, Packing::kNative);
  const auto up = backend->pack({&up_part, 1}, {}, Packing::kNative);
  FloatMatrix out(4, 40);
  GatedLinearArgs args;
  args.x = x.view();
  args.gate = gate.get();
  args.up = up.get();
  args.out = out.view();
  backend->gated_linear(args);
  const FloatMatrix gates = run_linear(*backend, *gate, x), ups = run_linear(*backend, *up, x);
  for (size_t i = 0; i < out.values.size(); ++i) {
    EXPECT_EQ(out.values[i], vector_math::silu(gates.values[i]) * ups.values[i]);
  }
}

TEST(Linear, NanAndInfinityStayInTheirRow) {
  std::mt19937 random(31);
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for (const std::string& isa : available_isas()) {
    const auto backend = make_backend(isa);
    for (const WeightType type : {WeightType::kBF16, WeightType::kQ8_0, WeightType::kQ4K}) {
      const auto tensor = random_tensor(type, 40, 256, random);
      const RawTensor* const part = tensor.get();
      for (const Packing packing : kPackings) {
        const auto weight = backend->pack({&part, 1}, {}, packing);
        for (const int64_t rows : {3, 14}) {
          const FloatMatrix clean = random_matrix(rows, 256, random);
          const FloatMatrix expected = run_linear(*backend, *weight, clean);
          for (const float bad : {nan, inf, -inf}) {
            FloatMatrix x = clean;
            x.row(1)[77] = bad;
            const FloatMatrix out = run_linear(*backend, *weight, x);
            for (int64_t m = 0; m < rows; ++m) {
              if (m != 1) {
                ASSERT_TRUE(same_bits(out.middle(m, 1), expected.middle(m, 1)));
                continue;
              }
              for (int64_t n = 0; n < 40; ++n) ASSERT_FALSE(std::isfinite(out.row(1)[n])) << isa << " " << bad;
            }
          }
        }
      }
    }
  }
}

TEST(Linear, ZeroAndTinyInputsGiveZeros) {
  std::mt19937 random(37);
  const auto tensor = random_tensor(WeightType::kQ4_1, 20, 64, random);
  const RawTensor* const part = tensor.get();
  const auto backend = make_backend("");
  const auto weight = backend->pack({&part, 1}, {}, Packing::kNative);
  for (const float value : {0.0f, 1e-35f, 1e-42f}) {
    FloatMatrix x(2, 64);
    for (float& element : x.values) element = value;
    const FloatMatrix out = run_linear(*backend, *weight, x);
    for (const float element : out.values) EXPECT_EQ(element, 0.0f);
  }
}

// What the int8 codes of each 32 values leave of them.
FloatMatrix rest_of(const FloatMatrix& x) {
  const FloatModeScope mode;
  FloatMatrix rest(x.rows, x.cols);
  for (int64_t m = 0; m < x.rows; ++m) {
    for (int64_t begin = 0; begin < x.cols; begin += 32) {
      float largest = 0;
      for (int i = 0; i < 32; ++i) largest = std::max(largest, std::fabs(x.row(m)[begin + i]));
      const float scale = largest / 127.0f, inverse = 127.0f / largest;
      for (int i = 0; i < 32; ++i) {
        const float value = x.row(m)[begin + i];
        rest.row(m)[begin + i] = std::fma(-scale, std::nearbyint(value * inverse), value);
      }
    }
  }
  return rest;
}

TEST(Linear, FineInputsAddWhatTheCodesLeave) {
  std::mt19937 random(43);
  for (const WeightType type : all_types()) {
    const auto tensor = random_tensor(type, 90, 512, random);
    const RawTensor* const part = tensor.get();
    const FloatMatrix x = random_matrix(150, 512, random);
    const bool quantized = info(type).quantized;
    FloatMatrix expected = canonical(x, *tensor, Packing::kNative);
    if (quantized) {
      const FloatMatrix more = canonical(rest_of(x), *tensor, Packing::kNative);
      for (size_t i = 0; i < expected.values.size(); ++i) expected.values[i] += more.values[i];
    }
    std::vector<float> bias(90);
    for (float& value : bias) value = std::normal_distribution<float>()(random);
    for (const std::string& isa : available_isas()) {
      const auto backend = make_backend(isa);
      const auto weight = backend->pack({&part, 1}, bias, Packing::kNative);
      for (const int64_t rows : {1, 2, 3, 7, 16, 33, 150}) {
        FloatMatrix out(rows, 90), want = expected.top(rows);
        for (int64_t m = 0; m < rows; ++m) {
          for (int64_t n = 0; n < 90; ++n) want.row(m)[n] += bias[static_cast<size_t>(n)];
        }
        const FloatMatrix top = x.top(rows);
        backend->linear({.x = top.view(), .weight = weight.get(), .fine_inputs = true, .out = out.view()});
        ASSERT_TRUE(same_bits(out, want)) << isa << ", type " << static_cast<int>(type) << ", rows " << rows;
      }
    }
  }
}

TEST(Linear, NoRowsIsNoWork) {
  std::mt19937 random(41);
  const auto tensor = random_tensor(WeightType::kF32, 20, 64, random);
  const RawTensor* const part = tensor.get();
  const auto backend = make_backend("");
  const auto weight = backend->pack({&part, 1}, {}, Packing::kNative);
  EXPECT_TRUE(run_linear(*backend, *weight, FloatMatrix(0, 64)).values.empty());
}

}  // namespace
}  // namespace tokenmill
