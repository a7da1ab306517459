// Steps that are launched before the one before them is committed give the outputs of steps one by one. All other
// scenarios run so, too: engine_scenarios_overlap_test.
#include <gtest/gtest.h>

#include <map>
#include <stdexcept>

#include "scenarios/shadow_model.h"

namespace tokenmill::testing {
namespace {

std::vector<Request> mixed_requests() {
  std::vector<Request> requests;
  for (uint64_t i = 0; i < 60; ++i) {
    Request request =
        ids_request(random_ids(i % 7, 5 + static_cast<int64_t>(i * 13 % 70)), 1 + static_cast<int64_t>(i * 7 % 60));
    SamplingParams& params = request.sampling_params;
    request.return_logprob = true;
    request.top_logprobs_num = static_cast<int64_t>(i % 3);
    if (i % 2 == 0) params.temperature = 0.9;
    if (i % 2 == 0) params.sampling_seed = i;
    if (i % 3 == 0) {
      for (int64_t id = 0; id < 512; id += 11) params.stop_token_ids.push_back(id);
    }
    if (i % 5 == 0) params.min_new_tokens = *params.max_new_tokens / 2;
    if (i % 4 == 0) params.frequency_penalty = 0.7;
    if (i % 6 == 0) params.repetition_penalty = 1.3;
    if (i % 7 == 0) params.n = 3;
    if (i % 8 == 1) params.stop = {"a", "the", "Q"};
    if (i % 9 == 0) params.bad_words = {"b", "cd"};
    if (i % 11 == 0) {
      params.custom_logit_processor =
          std::make_shared<const LogitProcessor>([i](std::span<const int32_t> output_ids, std::span<float> logits) {
            if (i == 33 && output_ids.size() == 5) throw std::runtime_error("no more");
            if (!output_ids.empty()) logits[static_cast<size_t>(output_ids.back())] -= 5;
          });
    }
    requests.push_back(std::move(request));
  }
  return requests;
}

ShadowEngineOptions options_with(bool overlap, int64_t max_total_tokens) {
  ShadowEngineOptions options;
  options.tokenizer = true;
  options.overlap = overlap;
  options.args.disable_overlap_schedule = !overlap;
  options.args.max_total_tokens = max_total_tokens;
  options.args.chunked_prefill_size = 48;
  options.args.max_running_requests = 12;
  options.args.page_size = 16;
  return options;
}

// What a caller sees, but for times and what the cache held.
std::string seen(const Output& output) {
  std::string text = output.text + "|";
  for (const int32_t id : output.output_ids) text += std::to_string(id) + " ";
  for (const auto& token : output.meta_info.output_token_logprobs)
    text += std::to_string(token.logprob.value_or(1)) + " ";
  const FinishReason& reason = *output.meta_info.finish_reason;
  return text + "|" + std::to_string(static_cast<int>(reason.type)) + reason.message;
}

TEST(EngineOverlap, TheSameOutputsAsOneByOne) {
  for (const int64_t pool : {1 << 16, 640}) {
    Engine overlapped = make_shadow_engine(options_with(true, pool));
    Engine one_by_one = make_shadow_engine(options_with(false, pool));
    for (int round = 0; round < 2; ++round) {
      const auto a = overlapped.generate(mixed_requests()), b = one_by_one.generate(mixed_requests());
      ASSERT_EQ(a.size(), b.size());
      for (size_t i = 0; i < a.size(); ++i) EXPECT_EQ(seen(a[i]), seen(b[i])) << i;
    }
    EXPECT_TRUE(overlapped.flush_cache());
    const auto stats = overlapped.stats();
    EXPECT_EQ(stats.at("blocks_free"), stats.at("blocks_total"));
  }
}

// With the option a step is committed before the next is launched, whatever the backend can do.
TEST(EngineOverlap, TheOptionTurnsItOff) {
  for (const bool disable : {false, true}) {
    ShadowEngineOptions options = options_with(true, 1 << 16);
    options.args.disable_overlap_schedule = disable;
    const auto core = make_shadow_core(std::move(options));
    auto call = std::make_shared<Call>();
    int64_t told = 0;
    call->on_output = [&](Output&& output) {
      told = output.meta_info.completion_tokens;
      return true;
    };
    Request request = ids_request({1, 2, 3}, 5);
    request.stream = true;
    core->submit({request}, call, true);
    core->step();
    core->deliver();
    EXPECT_EQ(told, disable ? 1 : 0);
    core->step();
    core->deliver();
    EXPECT_EQ(told, disable ? 2 : 1);
    while (core->step()) {
    }
    core->deliver();
    EXPECT_EQ(told, 5);
  }
}

// A task between two steps finds none in flight, and a step that nobody waits for is committed all the same.
TEST(EngineOverlap, FlushAfterTheLastOutput) {
  Engine engine = make_shadow_engine(options_with(true, 1 << 16));
  for (int32_t i = 0; i < 50; ++i) {
    Request request = ids_request({1, 2, i}, 100);
    for (int64_t id = 0; id < 512; id += 3) request.sampling_params.stop_token_ids.push_back(id);
    ASSERT_EQ(engine.generate(request).at(0).meta_info.finish_reason->type, FinishReason::Type::kStop);
    ASSERT_TRUE(engine.flush_cache());
  }
}

}  // namespace
}  // namespace tokenmill::testing
