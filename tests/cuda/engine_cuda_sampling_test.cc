// Every sampling parameter through the whole engine on a CUDA device: the CPU's tokens, texts, ends and logprobs.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "ops/backend_registry.h"
#include "tokenmill/engine.h"

namespace tokenmill::testing {
namespace {

const std::filesystem::path kData = TOKENMILL_TEST_DATA;

ServerArgs args_for(const std::string& device) {
  ServerArgs args;
  args.model_path = (kData / "tiny" / "stories260k").string();
  args.tokenizer_path = (kData / "text" / "bpe").string();
  args.device = device;
  args.dtype = "float32";
  args.log_level = "error";
  args.max_total_tokens = 1 << 13;
  args.max_running_requests = 64;
  args.random_seed = 1;
  return args;
}

struct Feature {
  const char* name;
  std::function<void(SamplingParams&)> set;
};

const Feature kFeatures[] = {
    {"greedy", [](SamplingParams& p) { p.temperature = 0; }},
    {"temperature", [](SamplingParams& p) { p.temperature = 0.7; }},
    {"top_k", [](SamplingParams& p) { p.top_k = 5; }},
    {"top_p", [](SamplingParams& p) { p.top_p = 0.8; }},
    {"min_p", [](SamplingParams& p) { p.min_p = 0.1; }},
    {"all cuts",
     [](SamplingParams& p) {
       p.top_k = 20;
       p.top_p = 0.9;
       p.min_p = 0.02;
     }},
    {"frequency_penalty", [](SamplingParams& p) { p.frequency_penalty = 1.5; }},
    {"presence_penalty", [](SamplingParams& p) { p.presence_penalty = -1; }},
    {"repetition_penalty", [](SamplingParams& p) { p.repetition_penalty = 1.4; }},
    {"min_new_tokens",
     [](SamplingParams& p) {
       p.min_new_tokens = 12;
       p.stop_token_ids = {5, 17, 29, 40};
       p.ignore_eos = false;
     }},
    {"stop", [](SamplingParams& p) { p.stop = {"a", "e "}; }},
    {"stop_regex", [](SamplingParams& p) { p.stop_regex = {"[aeiou]{2}"}; }},
    {"n", [](SamplingParams& p) { p.n = 3; }},
    {"logit_bias", [](SamplingParams& p) { p.logit_bias = {{7, 3.0}, {300, -4.0}, {21, 2.5}}; }},
    {"bad_words", [](SamplingParams& p) { p.bad_words = {"a", "the", "e"}; }},
    {"allowed_token_ids", [](SamplingParams& p) { p.allowed_token_ids = {{3, 50, 99, 120, 301}}; }},
    {"custom_logit_processor",
     [](SamplingParams& p) {
       p.custom_logit_processor =
           std::make_shared<const LogitProcessor>([](std::span<const int32_t> ids, std::span<float> logits) {
             for (size_t i = ids.size() % 3; i < logits.size(); i += 3) logits[i] -= 2;
           });
     }},
};

std::vector<Request> requests_with(const Feature& feature, int64_t vocab) {
  std::mt19937_64 random(11);
  std::vector<Request> requests(8);
  for (size_t i = 0; i < requests.size(); ++i) {
    std::vector<int32_t> ids(3 + random() % 40);
    for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint64_t>(vocab));
    requests[i].input_ids = std::move(ids);
    SamplingParams& params = requests[i].sampling_params;
    params.max_new_tokens = 24;
    params.ignore_eos = true;
    params.sampling_seed = 100 + i;
    requests[i].return_logprob = true;
    requests[i].top_logprobs_num = 3;
    requests[i].token_ids_logprob = {1, 77};
    feature.set(params);
  }
  return requests;
}

void expect_near(const std::vector<TokenLogprob>& got, const std::vector<TokenLogprob>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].token_id, want[i].token_id) << i;
    ASSERT_EQ(got[i].logprob.has_value(), want[i].logprob.has_value()) << i;
    EXPECT_NEAR(got[i].logprob.value_or(0), want[i].logprob.value_or(0), 2e-3) << i;
  }
}

TEST(EngineCudaSampling, EveryParameterIsTheCpus) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "not run: no CUDA device";
  Engine cpu(args_for("cpu")), cuda(args_for("cuda"));
  int sequences = 0, differing = 0;
  for (const Feature& feature : kFeatures) {
    SCOPED_TRACE(feature.name);
    const std::vector<Request> requests = requests_with(feature, cpu.vocab_size());
    const std::vector<Output> want = cpu.generate(requests), got = cuda.generate(requests);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) {
      SCOPED_TRACE(i);
      ++sequences;
      const MetaInfo &a = want[i].meta_info, &b = got[i].meta_info;
      ASSERT_NE(a.finish_reason->type, FinishReason::Type::kAbort) << a.finish_reason->message;
      // Logits differ in their last bits, so that a draw on a border, or a near tie, may fall the other way.
      if (got[i].output_ids != want[i].output_ids) {
        ++differing;
        continue;
      }
      EXPECT_EQ(got[i].text, want[i].text);
      EXPECT_EQ(b.finish_reason->type, a.finish_reason->type);
      expect_near(b.output_token_logprobs, a.output_token_logprobs);
      ASSERT_EQ(b.output_token_ids_logprobs.size(), a.output_token_ids_logprobs.size());
      for (size_t t = 0; t < a.output_token_ids_logprobs.size(); ++t) {
        expect_near(b.output_token_ids_logprobs[t], a.output_token_ids_logprobs[t]);
      }
    }
  }
  EXPECT_LE(differing, sequences / 100) << "of " << sequences;
  std::printf("[ sampling ] %d of %d sequences differ from the CPU's\n", differing, sequences);
}

}  // namespace
}  // namespace tokenmill::testing
