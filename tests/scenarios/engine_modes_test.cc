// The four ways to generate, over one submit: all give the same tokens, and streams their joined text.
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <thread>

#include "scenarios/shadow_model.h"

namespace tokenmill::testing {
namespace {

std::vector<Request> four_requests() {
  std::vector<Request> requests;
  for (uint64_t i = 0; i < 4; ++i) requests.push_back(ids_request(random_ids(i, 20 + static_cast<int64_t>(i)), 30));
  return requests;
}

void expect_greedy(const Request& request, const Output& output) {
  const auto expected = shadow_greedy(*request.input_ids, *request.sampling_params.max_new_tokens);
  EXPECT_EQ(output.output_ids, expected);
  ASSERT_TRUE(output.finished());
  EXPECT_EQ(output.meta_info.finish_reason->type, FinishReason::Type::kLength);
  EXPECT_EQ(output.meta_info.finish_reason->length, static_cast<int64_t>(expected.size()));
  EXPECT_EQ(output.meta_info.completion_tokens, static_cast<int64_t>(expected.size()));
  EXPECT_EQ(output.meta_info.prompt_tokens, static_cast<int64_t>(request.input_ids->size()));
  EXPECT_GT(output.meta_info.e2e_latency, 0);
}

TEST(EngineModes, Generate) {
  Engine engine = make_shadow_engine({});
  const auto requests = four_requests();
  const std::vector<Output> outputs = engine.generate(requests);
  ASSERT_EQ(outputs.size(), 4u);
  for (size_t i = 0; i < outputs.size(); ++i) {
    EXPECT_EQ(outputs[i].index, static_cast<int64_t>(i));
    expect_greedy(requests[i], outputs[i]);
  }
  expect_greedy(requests[2], engine.generate(requests[2]).at(0));
  EXPECT_TRUE(engine.generate(std::vector<Request>{}).empty());
}

TEST(EngineModes, GenerateAsync) {
  Engine engine = make_shadow_engine({});
  const auto requests = four_requests();
  auto first = engine.generate_async({requests[0], requests[1]});
  auto second = engine.generate_async({requests[2], requests[3]});
  const auto outputs_2 = second.get(), outputs_1 = first.get();
  for (size_t i = 0; i < 2; ++i) {
    expect_greedy(requests[i], outputs_1[i]);
    expect_greedy(requests[2 + i], outputs_2[i]);
  }
}

TEST(EngineModes, StreamOfAList) {
  Engine engine = make_shadow_engine({.args = {.stream_interval = 7}});
  const auto requests = four_requests();
  std::map<int64_t, Output> joined;
  std::map<int64_t, std::vector<int64_t>> sizes;
  for (const Output& chunk : engine.generate_stream(requests)) {
    Output& output = joined[chunk.index];
    output.output_ids.insert(output.output_ids.end(), chunk.output_ids.begin(), chunk.output_ids.end());
    output.meta_info = chunk.meta_info;
    EXPECT_EQ(chunk.meta_info.completion_tokens, static_cast<int64_t>(output.output_ids.size()));
    sizes[chunk.index].push_back(static_cast<int64_t>(chunk.output_ids.size()));
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    const auto index = static_cast<int64_t>(i);
    expect_greedy(requests[i], joined[index]);
    // The first token at once, then every seventh, the rest with the end.
    EXPECT_EQ(sizes[index], (std::vector<int64_t>{1, 7, 7, 7, 7, 1}));
  }
}

TEST(EngineModes, CumulativeStream) {
  Engine engine = make_shadow_engine({.args = {.incremental_streaming_output = false}, .tokenizer = true});
  Request request = ids_request(random_ids(1, 10), 12);
  request.return_logprob = true;
  request.sampling_params.ignore_eos = true;
  std::string text;
  size_t tokens = 0;
  for (const Output& chunk : engine.generate_stream(request)) {
    EXPECT_EQ(chunk.output_ids.size(), ++tokens);
    EXPECT_EQ(chunk.meta_info.output_token_logprobs.size(), tokens);
    EXPECT_EQ(chunk.text.substr(0, text.size()), text);
    text = chunk.text;
  }
  EXPECT_EQ(tokens, 12u);
  EXPECT_EQ(text, engine.generate(request)[0].text);
}

TEST(EngineModes, CallbacksRunInOrderAndEndOnce) {
  Engine engine = make_shadow_engine({});
  Request request = ids_request(random_ids(3, 8), 20);
  request.stream = true;
  request.rid = "mine";
  std::vector<int32_t> ids;
  std::promise<void> ended;
  int ends = 0;
  EXPECT_EQ(engine.submit(request,
                          [&](Output&& chunk) {
                            EXPECT_EQ(chunk.meta_info.id, "mine");
                            ids.insert(ids.end(), chunk.output_ids.begin(), chunk.output_ids.end());
                            if (chunk.finished() && ++ends == 1) ended.set_value();
                            return true;
                          }),
            "mine");
  ended.get_future().wait();
  EXPECT_EQ(ids, shadow_greedy(*request.input_ids, 20));
  engine.shutdown();
  EXPECT_EQ(ends, 1);
}

TEST(EngineModes, ThirtyTwoThreadsAtOnce) {
  Engine engine = make_shadow_engine({.args = {.max_running_requests = 16}});
  std::atomic<int> right{0};
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 32; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t round = 0; round < 3; ++round) {
        const Request request = ids_request(random_ids(100 * t + round, 5 + static_cast<int64_t>(t)), 10);
        const auto expected = shadow_greedy(*request.input_ids, 10);
        if (round == 1) {
          std::vector<int32_t> ids;
          for (const Output& chunk : engine.generate_stream(request)) {
            ids.insert(ids.end(), chunk.output_ids.begin(), chunk.output_ids.end());
          }
          right += ids == expected;
        } else {
          right += engine.generate(request)[0].output_ids == expected;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, 96);
  const auto stats = engine.stats();
  EXPECT_EQ(stats.at("requests"), 96);
  EXPECT_EQ(stats.at("finished"), 96);
  EXPECT_EQ(stats.at("aborted"), 0);
  EXPECT_EQ(stats.at("running"), 0);
  EXPECT_EQ(stats.at("generated_tokens"), 960);
}

TEST(EngineModes, AListLongerThanTheWindowIsFed) {
  Engine engine = make_shadow_engine({});
  std::vector<Request> requests;
  for (uint64_t i = 0; i < 4400; ++i) requests.push_back(ids_request(random_ids(i, 3), 1));
  const auto outputs = engine.generate(requests);
  ASSERT_EQ(outputs.size(), requests.size());
  for (size_t i = 0; i < outputs.size(); i += 97) expect_greedy(requests[i], outputs[i]);
  EXPECT_EQ(engine.stats().at("finished"), 4400);
}

}  // namespace
}  // namespace tokenmill::testing
