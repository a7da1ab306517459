// Every kernel once, at the smallest size at which all of its parts run: for compute-sanitizer, whose racecheck takes
// minutes for what takes milliseconds (docs/cuda_performance.md).
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "ops/cuda_attention_steps.h"
#include "ops/cuda_testing.h"

namespace tokenmill {
namespace {

class CudaSmallTest : public CudaBackendTest, public testing::WithParamInterface<bool> {
 protected:
  void SetUp() override {
    CudaBackendTest::SetUp();
    if (!IsSkipped() && GetParam()) cuda_ = make_backend("cuda", {}, true);
  }
};

struct ProductCase {
  int64_t n, k, rows;
  Packing packing;
  bool norm;
};

TEST_P(CudaSmallTest, Products) {
  const ProductCase cases[] = {
      {40, 1088, 2, Packing::kBFloat16, true},  {40, 1088, 2, Packing::kBFloat16, false},
      {40, 1088, 12, Packing::kBFloat16, true}, {72, 576, 20, Packing::kBFloat16, false},
      {72, 576, 40, Packing::kBFloat16, true},  {72, 192, 130, Packing::kBFloat16, false},
      {40, 100, 2, Packing::kBFloat16, true},   {40, 100, 4, Packing::kBFloat16, false},
      {40, 100, 20, Packing::kBFloat16, false}, {40, 100, 2, Packing::kFloat32, true},
      {40, 100, 20, Packing::kFloat32, false},  {40, 1088, 2, Packing::kFloat16, true},
      {40, 1088, 12, Packing::kFloat16, false}, {72, 576, 40, Packing::kFloat16, true},
      {72, 192, 130, Packing::kFloat16, false}, {40, 100, 2, Packing::kFloat16, false},
  };
  for (const ProductCase& test : cases) {
    const auto [n, k, rows, packing, with_norm] = test;
    SCOPED_TRACE("n " + std::to_string(n) + " k " + std::to_string(k) + " rows " + std::to_string(rows));
    const auto x = normal_values(rows * k, random_), w = normal_values(n * k, random_, 0.1);
    const auto u = normal_values(n * k, random_, 0.1), before = normal_values(rows * n, random_);
    const auto bias = normal_values(n, random_), norm_values = normal_values(k, random_);
    const RawTensor wt = tensor_of(w, n, k, WeightType::kF32), ut = tensor_of(u, n, k, WeightType::kF32);
    const RawTensor *wp = &wt, *up = &ut;
    compare(packing == Packing::kFloat32 ? 2e-5 : 2e-2, [&](Backend& ops) {
      const auto weight = ops.pack({&wp, 1}, bias, packing), other = ops.pack({&up, 1}, {}, packing);
      PlacedVector norm_weight(ops, norm_values);
      const Norm norm{norm_weight.data(), 1e-6f};
      Placed in(ops, rows, k, x, 8), sum(ops, rows, n, before, 8), gated(ops, rows, n, 8);
      const Norm* const input_norm = with_norm ? &norm : nullptr;
      ops.linear(
          {.x = in.view(), .input_norm = input_norm, .weight = weight.get(), .add_to_out = true, .out = sum.view()});
      ops.gated_linear(
          {.x = in.view(), .input_norm = input_norm, .gate = weight.get(), .up = other.get(), .out = gated.view()});
      std::vector<float> all = sum.read();
      std::ranges::copy(gated.read(), std::back_inserter(all));
      return all;
    });
  }
}

TEST_P(CudaSmallTest, Attention) {
  const AttentionCase cases[] = {
      {4, 1, 128, 0, 0, DType::kBF16, false, true, true}, {4, 1, 64, 200, 30, DType::kBF16, false, true, true},
      {2, 1, 64, 0, 0, DType::kBF16, true, true, true},   {2, 1, 80, 50, 0, DType::kBF16, false, true, true},
      {1, 1, 64, 0, 0, DType::kF32, true, false, true},   {1, 1, 256, 0, 0, DType::kF32, false, false, true},
      {4, 1, 128, 0, 0, DType::kF16, false, true, true},  {2, 1, 80, 50, 0, DType::kF16, false, true, true},
  };
  for (const AttentionCase& test : cases) {
    SCOPED_TRACE("heads " + std::to_string(test.q_heads) + "/" + std::to_string(test.kv_heads) + " dim " +
                 std::to_string(test.head_dim));
    const uint64_t seed = random_();
    compare(1e-2, [&](Backend& ops) { return attend_steps(ops, test, 16, seed); });
  }
}

TEST_P(CudaSmallTest, RowsAndLookups) {
  const int64_t rows = 3, cols = 600;
  const auto x = normal_values(rows * cols, random_), w = normal_values(cols, random_);
  const RawTensor table = tensor_of(normal_values(20 * cols, random_), 20, cols, WeightType::kF32);
  const RawTensor* const part = &table;
  const std::vector<int32_t> ids = {19, 0, 7};
  compare(1e-6, [&](Backend& ops) {
    const auto embedding = ops.pack({&part, 1}, {}, Packing::kFloat32);
    Placed in(ops, rows, cols, x), out(ops, rows, cols), picked(ops, 3, cols);
    PlacedVector weight(ops, w);
    const Norm norm{weight.data(), 1e-5f};
    ops.embed(ids, *embedding, 1.5f, out.view());
    ops.add_rms_norm(in.view(), norm, out.view());
    ops.gather_rows(out.view(), std::vector<int32_t>{2, 0, 1}, picked.view());
    ops.rms_norm(picked.view(), norm, picked.view());
    ops.softcap(picked.view(), 2);
    return picked.read();
  });
}

TEST_P(CudaSmallTest, Sampling) {
  constexpr int64_t kVocab = 1500;
  const auto cpu = make_backend("cpu", {.num_threads = 1, .isa = ""});
  const auto logits = normal_values(5 * kVocab, random_, 2);
  TokenCounts counts;
  counts.prompt_ids = {3, 5};
  counts.output_ids = {{5, 2}, {9, 1}};
  const std::vector<std::pair<int32_t, float>> bias = {{1, 2.0f}, {1, 1.0f}};
  const std::vector<int32_t> some = {2, 4, 1000}, asked = {0, 7};
  std::vector<SamplingRow> rows(5);
  rows[0] = {.temperature = 0};
  rows[1] = {.temperature = 1, .top_k = 30, .top_p = 0.8f, .min_p = 0.01f, .seed = 5, .want_logprob = true};
  rows[2] = {.temperature = 0.8f, .top_p = 0.9f, .seed = 6, .top_logprobs = 3};
  rows[3] = {.temperature = 0};
  rows[3].counts = &counts;
  rows[3].frequency_penalty = rows[3].presence_penalty = 0.5f;
  rows[3].repetition_penalty = 1.2f;
  rows[3].logit_bias = &bias;
  rows[3].banned_ids = &some;
  rows[3].want_logprob = true;
  rows[4] = {.temperature = 1, .seed = 7};
  rows[4].allowed_ids = &some;
  rows[4].logprob_ids = &asked;
  const auto run = [&](Backend& ops) {
    Placed placed(ops, 5, kVocab, logits);
    std::vector<SampledToken> out(rows.size());
    ops.sample(placed.view(), rows, out);
    return out;
  };
  const auto want = run(*cpu), got = run(*cuda_);
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(got[i].token, want[i].token) << "row " << i << " seed " << seed_;
    EXPECT_NEAR(got[i].logprob, want[i].logprob, 1e-4) << "row " << i << " seed " << seed_;
  }
}

INSTANTIATE_TEST_SUITE_P(, CudaSmallTest, testing::Bool(),
                         [](const auto& info) { return info.param ? "Deterministic" : "Default"; });

}  // namespace
}  // namespace tokenmill
