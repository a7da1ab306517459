// sample against a brute-force reference in double that ranks all ids, and Philox against Random123's known answers.
#include "ops/cpu/sample.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <set>

#include "ops/backend.h"
#include "ops/isas.h"

namespace tokenmill::reference {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<SampledToken> sample_rows(Backend& backend, const std::vector<std::vector<float>>& logits,
                                      const std::vector<SamplingRow>& rows) {
  const int64_t vocab = static_cast<int64_t>(logits.at(0).size());
  std::vector<float> memory;
  for (const auto& row : logits) memory.insert(memory.end(), row.begin(), row.end());
  std::vector<SampledToken> out(rows.size());
  backend.sample({memory.data(), static_cast<int64_t>(rows.size()), vocab, vocab, DType::kF32}, rows, out);
  return out;
}

SampledToken sample_one(Backend& backend, const std::vector<float>& logits, const SamplingRow& row) {
  return sample_rows(backend, {logits}, {row})[0];
}

std::vector<float> random_logits(int64_t vocab, std::mt19937_64& random, double deviation = 3) {
  std::normal_distribution<double> normal(0, deviation);
  std::vector<float> logits(static_cast<size_t>(vocab));
  for (float& value : logits) value = static_cast<float>(normal(random));
  return logits;
}

// The probabilities that the row's parameters leave, by definition and in double.
std::vector<double> kept_probabilities(std::vector<double> logits, const SamplingRow& row) {
  const size_t vocab = logits.size();
  std::map<int32_t, int32_t> output;
  std::set<int32_t> seen;
  if (row.counts != nullptr) {
    output.insert(row.counts->output_ids.begin(), row.counts->output_ids.end());
    seen.insert(row.counts->prompt_ids.begin(), row.counts->prompt_ids.end());
  }
  for (const auto& [id, count] : output) {
    seen.insert(id);
    logits[static_cast<size_t>(id)] -= row.frequency_penalty * count + row.presence_penalty;
  }
  for (const int32_t id : seen) {
    double& value = logits[static_cast<size_t>(id)];
    value = value > 0 ? value / row.repetition_penalty : value * row.repetition_penalty;
  }
  if (row.logit_bias != nullptr) {
    for (const auto& [id, bias] : *row.logit_bias) logits[static_cast<size_t>(id)] += bias;
  }
  for (const auto* banned : {row.banned_ids, row.banned_ids_more}) {
    if (banned == nullptr) continue;
    for (const int32_t id : *banned) logits[static_cast<size_t>(id)] = -kInfinity;
  }
  if (row.allowed_ids != nullptr) {
    const std::set<int32_t> allowed(row.allowed_ids->begin(), row.allowed_ids->end());
    for (size_t id = 0; id < vocab; ++id) {
      if (!allowed.contains(static_cast<int32_t>(id))) logits[id] = -kInfinity;
    }
  }
  const double peak = *std::max_element(logits.begin(), logits.end());
  if (peak == -kInfinity) return std::vector<double>(vocab, std::nan(""));  // every id is masked
  std::vector<double> weights(vocab);
  for (size_t id = 0; id < vocab; ++id) {
    weights[id] = row.temperature > 0 ? std::exp((logits[id] - peak) / row.temperature) : (logits[id] == peak ? 1 : 0);
  }
  std::vector<size_t> ranking(vocab);
  for (size_t id = 0; id < vocab; ++id) ranking[id] = id;
  std::stable_sort(ranking.begin(), ranking.end(), [&](size_t a, size_t b) { return weights[a] > weights[b]; });
  if (row.temperature == 0) ranking.resize(1);
  if (row.top_k > 0 && static_cast<size_t>(row.top_k) < ranking.size()) ranking.resize(static_cast<size_t>(row.top_k));
  double mass = 0, before = 0;
  for (const size_t id : ranking) mass += weights[id];
  size_t kept = 0;
  while (kept < ranking.size() && (kept == 0 || before < row.top_p * mass)) before += weights[ranking[kept++]];
  if (row.top_p < 1) ranking.resize(kept);
  std::vector<double> result(vocab, 0.0);
  double total = 0;
  for (const size_t id : ranking) {
    if (weights[id] < row.min_p) continue;
    result[id] = weights[id];
    total += weights[id];
  }
  for (double& value : result) value /= total;
  return result;
}

// The id at which the cumulated probabilities pass `uniform`; -1 where that is closer to a border than fp32 can tell.
int32_t expected_id(const std::vector<double>& probabilities, double uniform) {
  double cumulated = 0;
  for (size_t id = 0; id < probabilities.size(); ++id) {
    if (probabilities[id] == 0) continue;
    if (std::abs(cumulated + probabilities[id] - uniform) < 1e-5) return -1;
    cumulated += probabilities[id];
    if (cumulated > uniform) return static_cast<int32_t>(id);
  }
  return -1;
}

TEST(Philox, Random123KnownAnswers) {
  using Counter = std::array<uint32_t, 4>;
  EXPECT_EQ(philox4x32_10({0, 0, 0, 0}, {0, 0}), (Counter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const uint32_t ones = 0xffffffff;
  EXPECT_EQ(philox4x32_10({ones, ones, ones, ones}, {ones, ones}),
            (Counter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Counter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, UniformDependsOnEachPartOfItsName) {
  std::set<double> draws;
  for (uint64_t seed : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32}) {
    for (uint32_t sample : {0u, 1u}) {
      for (uint32_t position : {0u, 1u, 5u}) draws.insert(uniform_draw(seed, sample, position));
    }
  }
  EXPECT_EQ(draws.size(), 18u);
  EXPECT_GE(*draws.begin(), 0.0);
  EXPECT_LT(*draws.rbegin(), 1.0);
}

TEST(Sample, GreedyTakesTheLowestOfEqualMaxima) {
  std::mt19937_64 random(5);
  for (const std::string& isa : runnable_isas()) {
    const auto backend = make_cpu_backend({.num_threads = 2, .isa = isa});
    for (const int64_t vocab : {1, 2, 7, 8, 9, 31, 32, 33, 100, 1000, 50257}) {
      std::vector<float> logits = random_logits(vocab, random);
      for (int copies = 0; copies < 3; ++copies) {
        const auto peak = std::max_element(logits.begin(), logits.end());
        EXPECT_EQ(sample_one(*backend, logits, {.temperature = 0}).token, peak - logits.begin()) << vocab;
        logits[random() % logits.size()] = *peak;
      }
      const std::vector<float> equal(static_cast<size_t>(vocab), -3.5f);
      EXPECT_EQ(sample_one(*backend, equal, {.temperature = 0}).token, 0);
    }
  }
}

TEST(Sample, NanInfinityAndEmptyMasksAreInvalid) {
  const auto backend = make_cpu_backend({.num_threads = 1, .isa = ""});
  const std::vector<int32_t> all = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, none;
  for (const float temperature : {0.0f, 1.0f}) {
    for (const float bad : {kNan, kInfinity}) {
      for (size_t place = 0; place < 10; ++place) {
        std::vector<float> logits(10, 1.0f);
        logits[place] = bad;
        const SampledToken token =
            sample_one(*backend, logits, {.temperature = temperature, .want_logprob = true, .top_logprobs = 2});
        EXPECT_TRUE(token.invalid);
        EXPECT_EQ(token.token, -1);
        EXPECT_TRUE(token.top_logprobs.empty());
      }
    }
    SamplingRow masked{.temperature = temperature};
    masked.banned_ids = &all;
    EXPECT_TRUE(sample_one(*backend, std::vector<float>(10, 1.0f), masked).invalid);
    SamplingRow nothing_allowed{.temperature = temperature};
    nothing_allowed.allowed_ids = &none;
    EXPECT_TRUE(sample_one(*backend, std::vector<float>(10, 1.0f), nothing_allowed).invalid);
    std::vector<float> rest(10, -kInfinity);
    EXPECT_TRUE(sample_one(*backend, rest, {.temperature = temperature}).invalid);
    rest[6] = -1e30f;
    EXPECT_EQ(sample_one(*backend, rest, {.temperature = temperature}).token, 6);
  }
}

TEST(Sample, IdsOutsideTheVocabularyAreABrokenInvariant) {
  const auto backend = make_cpu_backend({.num_threads = 1, .isa = ""});
  const std::vector<int32_t> beyond = {10};
  SamplingRow row;
  row.banned_ids = &beyond;
  EXPECT_ANY_THROW(sample_one(*backend, std::vector<float>(10, 1.0f), row));
}

// Random parameters, every combination of features; the token must be the reference's.
TEST(Sample, MatchesTheBruteForceReference) {
  std::mt19937_64 random(77);
  const auto chance = [&](int one_in) { return random() % static_cast<uint64_t>(one_in) == 0; };
  const auto uniform = [&](double low, double high) {
    return static_cast<float>(std::uniform_real_distribution<double>(low, high)(random));
  };
  const auto backend = make_cpu_backend({.num_threads = 2, .isa = ""});
  int compared = 0;
  for (int trial = 0; trial < 3000; ++trial) {
    const int64_t vocab = static_cast<int64_t>(1 + random() % 300);
    const auto some_ids = [&](int one_in) {
      std::vector<int32_t> ids;
      for (int32_t id = 0; id < vocab; ++id) {
        if (chance(one_in)) ids.push_back(id);
      }
      return ids;
    };
    std::vector<float> logits = random_logits(vocab, random, uniform(0.1, 6));
    if (chance(3)) {
      for (float& value : logits) value = std::round(value);  // many ties
    }
    SamplingRow row{.temperature = chance(5) ? 0.0f : uniform(0.1, 2), .seed = random(), .position = 3};
    if (chance(2)) row.top_k = static_cast<int32_t>(1 + random() % 40);
    if (chance(2)) row.top_p = uniform(0.01, 1);
    if (chance(3)) row.min_p = uniform(0, 0.5);
    TokenCounts counts;
    counts.prompt_ids = some_ids(4);
    for (const int32_t id : some_ids(4)) counts.output_ids.emplace_back(id, static_cast<int32_t>(1 + random() % 3));
    if (chance(2)) {
      row.counts = &counts;
      row.frequency_penalty = uniform(-1, 1);
      row.presence_penalty = uniform(-1, 1);
      row.repetition_penalty = uniform(0.5, 1.9);
    }
    std::vector<std::pair<int32_t, float>> bias;
    for (const int32_t id : some_ids(10)) bias.emplace_back(id, uniform(-5, 5));
    if (chance(3)) row.logit_bias = &bias;
    const std::vector<int32_t> banned = some_ids(5), more = some_ids(5), allowed = some_ids(2);
    if (chance(3)) row.banned_ids = &banned;
    if (chance(3)) row.banned_ids_more = &more;
    if (chance(3)) row.allowed_ids = &allowed;

    const std::vector<double> exact(logits.begin(), logits.end());
    const std::vector<double> probabilities = kept_probabilities(exact, row);
    const SampledToken token = sample_one(*backend, logits, row);
    if (std::isnan(probabilities[0])) {
      EXPECT_TRUE(token.invalid);
      continue;
    }
    ASSERT_FALSE(token.invalid) << "trial " << trial;
    if (row.temperature == 0) {
      EXPECT_GT(probabilities[static_cast<size_t>(token.token)], 0) << "trial " << trial;
      continue;
    }
    const int32_t expected = expected_id(probabilities, uniform_draw(row.seed, row.sample_index, row.position));
    if (expected < 0) continue;
    ++compared;
    EXPECT_EQ(token.token, expected) << "trial " << trial << " vocab " << vocab << " top_k " << row.top_k << " top_p "
                                     << row.top_p << " min_p " << row.min_p;
  }
  EXPECT_GT(compared, 1500);
}

TEST(Sample, TopKBreaksTiesById) {
  const auto backend = make_cpu_backend({.num_threads = 1, .isa = ""});
  const std::vector<float> logits = {0, 2, 1, 2, 2, 1, 2};
  std::set<int32_t> drawn;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    drawn.insert(sample_one(*backend, logits, {.temperature = 1, .top_k = 3, .seed = seed}).token);
  }
  EXPECT_EQ(drawn, (std::set<int32_t>{1, 3, 4}));
}

// 20,000 fixed draws; the frequencies are exact numbers of this generator, the bound is far outside of its noise.
TEST(Sample, FrequenciesFollowTheProbabilities) {
  const auto backend = make_cpu_backend({.num_threads = 2, .isa = ""});
  std::mt19937_64 random(3);
  const std::vector<float> logits = random_logits(40, random, 1.5);
  const SamplingRow parameters{.temperature = 0.8f, .top_k = 30, .top_p = 0.95f, .min_p = 0.01f, .seed = 123};
  const auto probabilities = kept_probabilities(std::vector<double>(logits.begin(), logits.end()), parameters);
  constexpr int kDraws = 20000;
  std::vector<SamplingRow> rows(kDraws, parameters);
  for (int i = 0; i < kDraws; ++i) rows[static_cast<size_t>(i)].position = static_cast<uint32_t>(i);
  std::vector<int> counts(logits.size(), 0);
  const std::vector<std::vector<float>> copies(kDraws, logits);
  for (const SampledToken& token : sample_rows(*backend, copies, rows)) ++counts[static_cast<size_t>(token.token)];
  for (size_t id = 0; id < logits.size(); ++id) {
    EXPECT_NEAR(counts[id] / static_cast<double>(kDraws), probabilities[id], 0.012) << id;
    if (probabilities[id] == 0) {
      EXPECT_EQ(counts[id], 0);
    }
  }
}

TEST(Sample, LogprobsAreOfTheRawLogits) {
  std::mt19937_64 random(9);
  const auto backend = make_cpu_backend({.num_threads = 1, .isa = ""});
  for (const int64_t vocab : {5, 64, 1003, 49152}) {
    std::vector<float> logits = random_logits(vocab, random);
    logits[1] = logits[3];  // a tie
    double total = 0;
    for (const float value : logits) total += std::exp(static_cast<double>(value));
    const auto logprob = [&](int32_t id) { return logits[static_cast<size_t>(id)] - std::log(total); };
    const std::vector<int32_t> asked = {4, 0, 4};
    const std::vector<int32_t> banned = {2};
    for (const float temperature : {0.0f, 0.5f}) {
      SamplingRow row{.temperature = temperature, .seed = 8, .want_logprob = true, .top_logprobs = 5};
      row.logprob_ids = &asked;
      row.banned_ids = &banned;
      const SampledToken token = sample_one(*backend, logits, row);
      ASSERT_FALSE(token.invalid);
      EXPECT_NEAR(token.logprob, logprob(token.token), 2e-6);
      ASSERT_EQ(token.ids_logprobs.size(), 3u);
      for (size_t i = 0; i < 3; ++i) {
        EXPECT_EQ(token.ids_logprobs[i].first, asked[i]);
        EXPECT_NEAR(token.ids_logprobs[i].second, logprob(asked[i]), 2e-6);
      }
      std::vector<int32_t> ranking(static_cast<size_t>(vocab));
      for (size_t id = 0; id < ranking.size(); ++id) ranking[id] = static_cast<int32_t>(id);
      std::stable_sort(ranking.begin(), ranking.end(), [&](int32_t a, int32_t b) {
        return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
      });
      ASSERT_EQ(token.top_logprobs.size(), 5u);
      for (size_t i = 0; i < 5; ++i) {
        EXPECT_EQ(token.top_logprobs[i].first, ranking[i]);
        EXPECT_NEAR(token.top_logprobs[i].second, logprob(ranking[i]), 2e-6);
      }
    }
  }
}

TEST(Sample, SameBitsInAnyBatchThreadsAndIsa) {
  std::mt19937_64 random(21);
  const int64_t vocab = 32003;
  std::vector<std::vector<float>> logits;
  std::vector<SamplingRow> rows;
  for (int i = 0; i < 24; ++i) {
    logits.push_back(random_logits(vocab, random, 1 + i % 4));
    SamplingRow row{.temperature = i % 5 == 0 ? 0.0f : 1.2f, .seed = random(), .want_logprob = true};
    if (i % 2 == 0) row.top_p = 0.999f;
    if (i % 3 == 0) row.top_k = 2000;
    rows.push_back(row);
  }
  std::vector<SampledToken> expected;
  for (const std::string& isa : runnable_isas()) {
    for (const int threads : {1, 2, 3}) {
      const auto backend = make_cpu_backend({.num_threads = threads, .isa = isa});
      const auto together = sample_rows(*backend, logits, rows);
      if (expected.empty()) expected = together;
      for (size_t i = 0; i < rows.size(); ++i) {
        const SampledToken alone = sample_one(*backend, logits[i], rows[i]);
        EXPECT_EQ(together[i].token, expected[i].token);
        EXPECT_EQ(together[i].logprob, expected[i].logprob);
        EXPECT_EQ(alone.token, expected[i].token);
        EXPECT_EQ(alone.logprob, expected[i].logprob);
      }
    }
  }
}

}  // namespace
}  // namespace tokenmill::reference
