// The prefix cache through the whole engine: exact counts at every page size, and small pools that give the same bits.
#include <gtest/gtest.h>

#include <chrono>
#include <future>

#include "scenarios/shadow_model.h"

namespace tokenmill::testing {
namespace {

class EngineCache : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(PageSizes, EngineCache, ::testing::Values(1, 16, 32, 64));

TEST_P(EngineCache, CountsAreExactToTheToken) {
  for (const Packing packing : {Packing::kBFloat16, Packing::kFloat32}) {
    Engine engine = make_shadow_engine({.model = {.packing = packing}, .args = {.page_size = GetParam()}});
    const auto cached = [&](std::vector<int32_t> ids) {
      const Output output = engine.generate(ids_request(ids, 4))[0];
      EXPECT_EQ(output.output_ids, shadow_greedy(ids, 4));
      return output.meta_info.cached_tokens;
    };
    const std::vector<int32_t> hundred = random_ids(1, 100);
    EXPECT_EQ(cached(hundred), 0);
    EXPECT_EQ(cached(hundred), 99);
    const std::vector<int32_t> long_ids = random_ids(2, 10000);
    EXPECT_EQ(cached({long_ids.begin(), long_ids.begin() + 100}), 0);
    EXPECT_EQ(cached(long_ids), 100);
    EXPECT_EQ(cached(long_ids), 9999);
    EXPECT_EQ(cached({long_ids.begin(), long_ids.begin() + 1000}), 999);
    std::vector<int32_t> longer = long_ids;
    for (const int32_t id : random_ids(3, 1000)) longer.push_back(id);
    EXPECT_EQ(cached(longer), 10000);
    EXPECT_TRUE(engine.flush_cache());
    EXPECT_EQ(cached(hundred), 0);
  }
}

TEST_P(EngineCache, DisabledMeansNothingIsShared) {
  Engine engine = make_shadow_engine({.args = {.disable_radix_cache = true, .page_size = GetParam()}});
  for (int i = 0; i < 2; ++i)
    EXPECT_EQ(engine.generate(ids_request(random_ids(1, 100), 2))[0].meta_info.cached_tokens, 0);
}

std::vector<Output> run_small(const std::vector<Request>& requests, std::optional<int64_t> max_total_tokens,
                              std::map<std::string, double>& stats) {
  OpenEngine open({.args = {.max_running_requests = 16,
                            .max_total_tokens = max_total_tokens,
                            .schedule_conservativeness = 0.1,
                            .page_size = 16}});
  auto waiting = open.engine.generate_async(requests);
  while (waiting.wait_for(std::chrono::milliseconds(20)) != std::future_status::ready) open.core->check_integrity();
  auto outputs = waiting.get();
  open.core->check_integrity();
  stats = open.engine.stats();
  return outputs;
}

TEST(EngineRetraction, AnEighthOfTheWantedPoolGivesTheSameBits) {
  std::vector<Request> requests;
  int64_t wanted = 0;
  for (uint64_t i = 0; i < 1000; ++i) {
    const auto prompt = static_cast<int64_t>(5 + (i * 37) % 90), output = static_cast<int64_t>(4 + (i * 11) % 29);
    Request request = ids_request(random_ids(i, prompt), output);
    request.sampling_params.temperature = i % 3 == 0 ? 0.9 : 0;
    requests.push_back(std::move(request));
    wanted += prompt + output;
  }
  const int64_t pool = wanted * 16 / 1000 / 8;  // 16 running requests of mean length, an eighth of that
  std::map<std::string, double> small_stats, roomy_stats;
  const auto small = run_small(requests, pool, small_stats);
  const auto roomy = run_small(requests, std::nullopt, roomy_stats);
  ASSERT_EQ(small.size(), roomy.size());
  for (size_t i = 0; i < small.size(); ++i) {
    EXPECT_EQ(small[i].output_ids, roomy[i].output_ids) << i;
    EXPECT_EQ(small[i].meta_info.finish_reason->type, FinishReason::Type::kLength) << i;
  }
  EXPECT_GT(small_stats.at("retractions"), 0);
  EXPECT_EQ(small_stats.at("finished"), 1000);
  EXPECT_GT(roomy_stats.at("blocks_total"), small_stats.at("blocks_total"));
}

TEST(EngineRetraction, WhatFitsNoPoolEndsAlone) {
  Engine engine = make_shadow_engine({.args = {.max_total_tokens = 64, .page_size = 16}});
  const auto outputs = engine.generate({ids_request(random_ids(1, 20), 200), ids_request(random_ids(2, 20), 3)});
  EXPECT_EQ(outputs[0].meta_info.finish_reason->type, FinishReason::Type::kAbort);
  const auto expected = shadow_greedy(random_ids(1, 20), static_cast<int64_t>(outputs[0].output_ids.size()));
  EXPECT_EQ(outputs[0].output_ids, expected);
  EXPECT_EQ(outputs[1].output_ids, shadow_greedy(random_ids(2, 20), 3));
  EXPECT_EQ(engine.generate(ids_request({1, 2}, 3))[0].output_ids, shadow_greedy({1, 2}, 3));
}

TEST(EngineDeterminism, ChunksBatchesAndPagesDoNotMatter) {
  std::vector<Request> requests;
  for (uint64_t i = 0; i < 12; ++i) {
    Request request = ids_request(random_ids(i, 40 + static_cast<int64_t>(7 * i)), 12);
    request.sampling_params.temperature = 1;
    request.sampling_params.sampling_seed = i;
    request.return_logprob = true;
    requests.push_back(std::move(request));
  }
  std::vector<Output> expected;
  for (const int64_t chunk : {0, 16, 512}) {
    for (const int64_t page : {1, 32}) {
      Engine engine = make_shadow_engine({.args = {.chunked_prefill_size = chunk, .page_size = page}});
      const auto outputs = engine.generate(requests);
      if (expected.empty()) expected = outputs;
      for (size_t i = 0; i < outputs.size(); ++i) {
        EXPECT_EQ(outputs[i].output_ids, expected[i].output_ids);
        for (size_t t = 0; t < outputs[i].meta_info.output_token_logprobs.size(); ++t) {
          EXPECT_EQ(outputs[i].meta_info.output_token_logprobs[t].logprob,
                    expected[i].meta_info.output_token_logprobs[t].logprob);
        }
      }
      const Output alone = engine.generate(requests[5])[0];
      EXPECT_EQ(alone.output_ids, expected[5].output_ids);
    }
  }
}

}  // namespace
}  // namespace tokenmill::testing
