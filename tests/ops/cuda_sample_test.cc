// Sampling of the CUDA backend against the CPU's.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "ops/cuda_testing.h"

namespace tokenmill {
namespace {

std::vector<SampledToken> sample_rows(Backend& ops, const std::vector<float>& logits, int64_t vocab,
                                      std::span<const SamplingRow> rows) {
  Placed placed(ops, static_cast<int64_t>(rows.size()), vocab, logits);
  std::vector<SampledToken> out(rows.size());
  ops.sample(placed.view(), rows, out);
  return out;
}

// Against the CPU backend, whose own test compares it with brute force: the same logits give the same tokens, all of
// them.
TEST_F(CudaBackendTest, SamplesLikeTheCpu) {
  const auto cpu = make_backend("cpu", {.num_threads = 2, .isa = ""});
  const auto chance = [&](uint64_t one_in) { return random_() % one_in == 0; };
  const auto uniform = [&](double low, double high) {
    return static_cast<float>(std::uniform_real_distribution<double>(low, high)(random_));
  };
  int rows_seen = 0, differing = 0;
  std::set<int32_t> tokens;
  for (int trial = 0; trial < 400; ++trial) {
    const int64_t vocab = chance(6) ? 50257 : chance(3) ? 1500 : static_cast<int64_t>(1 + random_() % 300);
    constexpr size_t kRows = 16;
    auto logits = normal_values(static_cast<int64_t>(kRows) * vocab, random_, uniform(0.1, 6));
    const bool ties = chance(3);
    for (float& value : logits) value = ties ? std::round(value) : value;
    const auto some_ids = [&](uint64_t one_in) {
      std::vector<int32_t> ids;
      for (int32_t id = 0; id < vocab; ++id) {
        if (chance(one_in)) ids.push_back(id);
      }
      return ids;
    };
    std::vector<SamplingRow> rows(kRows);
    std::vector<TokenCounts> counts(kRows);
    std::vector<std::vector<std::pair<int32_t, float>>> bias(kRows);
    std::vector<std::vector<int32_t>> banned(kRows), more(kRows), allowed(kRows), asked(kRows);
    for (size_t i = 0; i < kRows; ++i) {
      SamplingRow& row = rows[i];
      row.temperature = chance(4) ? 0.0f : uniform(0.1, 2);
      row.seed = random_();
      row.position = static_cast<uint32_t>(i);
      if (chance(2)) row.top_k = static_cast<int32_t>(1 + random_() % 60);
      if (chance(2)) row.top_p = uniform(0.01, 1);
      if (chance(3)) row.min_p = uniform(0, 0.5);
      if (chance(2)) {
        counts[i].prompt_ids = some_ids(4);
        for (const int32_t id : some_ids(4))
          counts[i].output_ids.emplace_back(id, static_cast<int32_t>(1 + random_() % 3));
        row.counts = &counts[i];
        row.frequency_penalty = uniform(-1, 1);
        row.presence_penalty = uniform(-1, 1);
        row.repetition_penalty = uniform(0.5, 1.9);
      }
      for (const int32_t id : some_ids(10)) bias[i].emplace_back(id, uniform(-5, 5));
      if (chance(3)) row.logit_bias = &bias[i];
      banned[i] = some_ids(5);
      more[i] = some_ids(5);
      allowed[i] = some_ids(2);
      asked[i] = some_ids(50);
      if (chance(3)) row.banned_ids = &banned[i];
      if (chance(3)) row.banned_ids_more = &more[i];
      if (chance(4)) row.allowed_ids = &allowed[i];
      row.want_logprob = chance(2);
      if (chance(3)) row.top_logprobs = static_cast<int32_t>(random_() % 8);
      if (chance(3)) row.logprob_ids = &asked[i];
      if (chance(20)) logits[i * static_cast<size_t>(vocab)] = chance(2) ? kNan : -kNan;
    }
    const auto want = sample_rows(*cpu, logits, vocab, rows), got = sample_rows(*cuda_, logits, vocab, rows);
    for (size_t i = 0; i < kRows; ++i) {
      ++rows_seen;
      SCOPED_TRACE("trial " + std::to_string(trial) + " row " + std::to_string(i) + " seed " + std::to_string(seed_));
      ASSERT_EQ(got[i].invalid, want[i].invalid);
      ASSERT_EQ(got[i].top_logprobs.size(), want[i].top_logprobs.size());
      ASSERT_EQ(got[i].ids_logprobs.size(), want[i].ids_logprobs.size());
      for (size_t j = 0; j < want[i].top_logprobs.size(); ++j) {
        EXPECT_EQ(got[i].top_logprobs[j].first, want[i].top_logprobs[j].first);
        EXPECT_NEAR(got[i].top_logprobs[j].second, want[i].top_logprobs[j].second, 1e-4);
      }
      for (size_t j = 0; j < want[i].ids_logprobs.size(); ++j) {
        EXPECT_EQ(got[i].ids_logprobs[j].first, want[i].ids_logprobs[j].first);
        EXPECT_NEAR(got[i].ids_logprobs[j].second, want[i].ids_logprobs[j].second, 1e-4);
      }
      if (got[i].token != want[i].token) {
        ++differing;
        EXPECT_GT(rows[i].temperature, 0) << "greedy";
        continue;
      }
      tokens.insert(got[i].token);
      EXPECT_NEAR(got[i].logprob, want[i].logprob, 1e-4);
    }
  }
  EXPECT_EQ(differing, 0) << "of " << rows_seen << ", seed " << seed_;
  std::printf("[ sampling ] %d rows, %d differ from the CPU's\n", rows_seen, differing);
  EXPECT_GT(tokens.size(), 50u);
}

// In halves and by chunks of rows, as the engine does: the same answers, told after the next step has been launched,
// which begins with the tokens that lie in the slots.
TEST_F(CudaBackendTest, SamplingInHalvesLeavesItsTokensInSlots) {
  constexpr int64_t kVocab = 700, kRows = 5, kCols = 16;
  std::vector<float> ids(static_cast<size_t>(kVocab * kCols));
  for (int64_t id = 0; id < kVocab; ++id) ids[static_cast<size_t>(id * kCols)] = static_cast<float>(id);
  const RawTensor table = tensor_of(ids, kVocab, kCols, WeightType::kF32);
  const RawTensor* const part = &table;
  const auto weight = cuda_->pack({&part, 1}, {}, Packing::kFloat32);
  EXPECT_TRUE(cuda_->overlaps());
  for (int trial = 0; trial < 20; ++trial) {
    auto logits = normal_values(kRows * kVocab, random_, 2);
    if (trial % 3 == 0) logits[3 * kVocab] = kNan;  // row 3 has no token: its slot holds 0
    std::vector<SamplingRow> rows(kRows);
    const std::vector<int32_t> asked = {3, 600};
    for (size_t i = 0; i < rows.size(); ++i) {
      rows[i].temperature = i % 2 == 0 ? 0.8f : 0.0f;
      rows[i].seed = random_();
      rows[i].want_logprob = true;
      rows[i].top_logprobs = static_cast<int32_t>(i);
      if (i % 2 == 1) rows[i].logprob_ids = &asked;
    }
    const auto want = sample_rows(*cuda_, logits, kVocab, rows);

    Placed placed(*cuda_, kRows, kVocab, logits), forgotten(*cuda_, kRows, kVocab, logits);
    if (trial % 4 == 1) {  // a sampling that went no further
      cuda_->launch_sample(forgotten.view().slice_rows(0, 3), std::span(rows).first(3), 0, kRows);
    }
    cuda_->launch_sample(placed.view().slice_rows(0, 3), std::span(rows).first(3), 0, kRows);
    cuda_->launch_sample(placed.view().slice_rows(3, 2), std::span(rows).subspan(3), 3, kRows);
    Batch next;
    next.tokens = {0, 7, 0, 0, 0, 0};
    next.positions = {1, 0, 1, 1, 1, 1};
    for (int32_t token = 0; token < 6; ++token) {
      next.rows.push_back(
          {.sequence_id = 0, .q_len = 1, .kv_len = 1, .token_begin = token, .block_begin = token, .num_blocks = 1});
      next.block_tables.push_back(token);
    }
    next.slot_tokens = {{0, 4}, {2, 3}, {3, 0}, {4, 1}, {5, 2}};
    cuda_->plan(next, 16);
    Placed out(*cuda_, 6, kCols);
    cuda_->embed(next.tokens, *weight, 1, out.view());
    std::vector<SampledToken> got(kRows);
    cuda_->collect_samples(got);

    const auto found = out.read();
    const auto token_at = [&](size_t index) { return static_cast<int32_t>(found[index * kCols]); };
    EXPECT_EQ(token_at(1), 7);
    for (const SlotToken& token : next.slot_tokens) {
      EXPECT_EQ(token_at(static_cast<size_t>(token.token_index)),
                std::max(0, want[static_cast<size_t>(token.slot)].token));
    }
    for (size_t i = 0; i < rows.size(); ++i) {
      SCOPED_TRACE(std::to_string(trial) + " " + std::to_string(i));
      ASSERT_EQ(got[i].invalid, want[i].invalid);
      if (got[i].invalid) continue;
      EXPECT_EQ(got[i].token, want[i].token);
      EXPECT_EQ(got[i].logprob, want[i].logprob);
      EXPECT_EQ(got[i].top_logprobs, want[i].top_logprobs);
      EXPECT_EQ(got[i].ids_logprobs, want[i].ids_logprobs);
    }
  }
}

TEST_F(CudaBackendTest, SamplingIsTheSameAloneAndTogether) {
  const int64_t vocab = 32003;
  const auto logits = normal_values(8 * vocab, random_, 3);
  std::vector<SamplingRow> rows(8);
  for (size_t i = 0; i < 8; ++i)
    rows[i] = {.temperature = 1.2f, .top_p = 0.99f, .seed = random_(), .want_logprob = true};
  const auto together = sample_rows(*cuda_, logits, vocab, rows);
  for (size_t i = 0; i < 8; ++i) {
    const std::vector<float> own(logits.begin() + static_cast<int64_t>(i) * vocab,
                                 logits.begin() + static_cast<int64_t>(i + 1) * vocab);
    const auto alone = sample_rows(*cuda_, own, vocab, std::span(rows).subspan(i, 1));
    EXPECT_EQ(alone[0].token, together[i].token);
    EXPECT_EQ(alone[0].logprob, together[i].logprob);
  }
  const std::vector<int32_t> beyond = {static_cast<int32_t>(vocab)};
  SamplingRow outside;
  outside.banned_ids = &beyond;
  const std::vector<float> own(logits.begin(), logits.begin() + vocab);
  EXPECT_ANY_THROW(sample_rows(*cuda_, own, vocab, {&outside, 1}));
}

}  // namespace
}  // namespace tokenmill
