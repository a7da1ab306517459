// What a request may ask for: messages of contract section 7, samples, seeds, logprobs, stops and text.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <future>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "scenarios/shadow_model.h"
#include "util/expect_error.h"

namespace tokenmill::testing {
namespace {

using namespace std::chrono_literals;

ShadowEngineOptions text_engine() {
  ShadowEngineOptions options;
  options.tokenizer = true;
  options.model.vocab_size = 257;  // bytes and <eos>
  return options;
}

Request text_request(std::string prompt, int64_t max_new_tokens) {
  Request request;
  request.prompt = std::move(prompt);
  request.sampling_params.max_new_tokens = max_new_tokens;
  request.sampling_params.temperature = 0;
  request.sampling_params.ignore_eos = true;
  return request;
}

TEST(EngineRequests, MessagesOfBadRequests) {
  Engine engine = make_shadow_engine({.model = {.context_length = 64}});
  const auto rejects = [&](Request request, ErrorKind kind, const char* message) {
    EXPECT_LOAD_ERROR((void)engine.generate(request), kind, message);
    // A list with one bad item raises as a whole, before anything of it runs.
    EXPECT_LOAD_ERROR((void)engine.generate({ids_request({1}, 1), request}), kind, message);
  };
  const auto changed = [](auto change) {
    Request request = ids_request({1, 2, 3}, 4);
    change(request);
    return request;
  };
  rejects({}, ErrorKind::kValue, "Either text or input_ids should be provided.");
  rejects(ids_request({}, 1), ErrorKind::kValue, "input_ids cannot be empty.");
  rejects(ids_request({1, 512}, 1), ErrorKind::kValue, "input_ids must be made of token ids in [0, 512), got 512.");
  rejects(text_request("hi", 1), ErrorKind::kValue,
          "The engine initialized with skip_tokenizer_init=True cannot accept text prompts. Please provide input_ids "
          "or re-initialize the engine with skip_tokenizer_init=False.");
  rejects(changed([](Request& r) { r.prompt = "both"; }), ErrorKind::kValue, "Only one of text, input_ids");
  rejects(changed([](Request& r) { r.sampling_params.top_p = 1.5; }), ErrorKind::kValue,
          "top_p must be in (0, 1], got 1.5.");
  rejects(changed([](Request& r) { r.token_ids_logprob = {512}; }), ErrorKind::kValue,
          "token_ids_logprob contains out-of-vocabulary token id 512; valid range is [0, 512).");
  rejects(changed([](Request& r) { r.sampling_params.stop = {"x"}; }), ErrorKind::kValue, "stop needs a tokenizer");
  rejects(changed([](Request& r) { r.sampling_params.logit_bias[600] = 1; }), ErrorKind::kValue, "logit_bias must be");
  rejects(changed([](Request& r) { r.lora_path = "x"; }), ErrorKind::kUnsupported, "lora_path is not built yet");
  EXPECT_EQ(engine.stats().at("requests"), 0);
}

TEST(EngineRequests, WhatOnlyTokenisingShowsEndsItsItem) {
  Engine engine = make_shadow_engine({.model = {.context_length = 64}});
  const char* const too_long = "The input (65 tokens) is longer than the model's context length (64 tokens).";
  EXPECT_LOAD_ERROR((void)engine.generate(ids_request(random_ids(1, 65), 1)), ErrorKind::kValue, too_long);
  const auto outputs = engine.generate({ids_request({1, 2}, 3), ids_request(random_ids(1, 65), 1)});
  EXPECT_EQ(outputs[0].output_ids, shadow_greedy({1, 2}, 3));
  ASSERT_EQ(outputs[1].meta_info.finish_reason->type, FinishReason::Type::kAbort);
  EXPECT_EQ(outputs[1].meta_info.finish_reason->message, too_long);

  Request prompt_logprobs = ids_request({1, 2, 3}, 1);
  prompt_logprobs.return_logprob = true;
  prompt_logprobs.logprob_start_len = 1;
  EXPECT_LOAD_ERROR((void)engine.generate(prompt_logprobs), ErrorKind::kUnsupported, "logprob_start_len below");
  prompt_logprobs.logprob_start_len = 3;
  EXPECT_EQ(engine.generate(prompt_logprobs)[0].meta_info.output_token_logprobs.size(), 1u);
}

TEST(EngineRequests, AGrammarEndsItsItem) {
  Engine engine = make_shadow_engine({});
  using Set = void (*)(SamplingParams&);
  const std::pair<const char*, Set> grammars[] = {
      {"json_schema", [](SamplingParams& p) { p.json_schema = "{}"; }},
      {"regex", [](SamplingParams& p) { p.regex = "a"; }},
      {"ebnf", [](SamplingParams& p) { p.ebnf = "root ::= \"a\""; }},
      {"structural_tag", [](SamplingParams& p) { p.structural_tag = "{}"; }}};
  for (const auto& [name, set] : grammars) {
    Request with_grammar = ids_request({1, 2, 3}, 4);
    set(with_grammar.sampling_params);
    const std::string says = std::string(name) + " is not built yet: this version has no grammars";
    EXPECT_LOAD_ERROR((void)engine.generate(with_grammar), ErrorKind::kUnsupported, says);
    const auto outputs = engine.generate({ids_request({1, 2}, 3), with_grammar, ids_request({3, 4}, 3)});
    EXPECT_EQ(outputs[0].output_ids, shadow_greedy({1, 2}, 3));
    EXPECT_EQ(outputs[2].output_ids, shadow_greedy({3, 4}, 3));
    const MetaInfo& meta = outputs[1].meta_info;
    ASSERT_EQ(meta.finish_reason->type, FinishReason::Type::kAbort);
    EXPECT_TRUE(meta.finish_reason->message.starts_with(says)) << meta.finish_reason->message;
    EXPECT_NE(meta.finish_reason->message.find("request '" + meta.id + "' asks for"), std::string::npos);
    // Two at once are no value that any version takes.
    with_grammar.sampling_params.regex = "a";
    with_grammar.sampling_params.ebnf = "b";
    EXPECT_LOAD_ERROR((void)engine.generate({ids_request({1}, 1), with_grammar}), ErrorKind::kValue, "of them");
  }
}

TEST(EngineRequests, ContextLength) {
  Engine engine = make_shadow_engine({.model = {.context_length = 64}});
  Request request = ids_request(random_ids(1, 60), 100);
  EXPECT_EQ(engine.generate(request)[0].output_ids.size(), 4u);
  request.sampling_params.max_new_tokens = std::nullopt;
  EXPECT_EQ(engine.generate(request)[0].output_ids.size(), 4u);
  request.sampling_params.max_new_tokens = 0;
  const Output prefill_only = engine.generate(request)[0];
  EXPECT_TRUE(prefill_only.output_ids.empty());
  EXPECT_EQ(prefill_only.meta_info.finish_reason->type, FinishReason::Type::kLength);

  Engine cutting = make_shadow_engine({.model = {.context_length = 64}, .args = {.allow_auto_truncate = true}});
  const auto ids = random_ids(2, 100);
  Request over_long = ids_request(ids, 5);
  over_long.return_prompt_token_ids = true;
  const Output cut = cutting.generate(over_long)[0];
  EXPECT_EQ(cut.prompt_token_ids, std::vector<int32_t>(ids.begin(), ids.begin() + 63));
  EXPECT_EQ(cut.output_ids, shadow_greedy(*cut.prompt_token_ids, 1));
}

TEST(EngineRequests, DuplicateIdsAndAFullQueue) {
  ShadowEngineOptions options;
  options.args.max_queued_requests = 3;
  options.args.max_running_requests = 1;
  options.model.on_forward = [](const Batch&) { std::this_thread::sleep_for(2ms); };
  Engine engine = make_shadow_engine(std::move(options));
  Request first = ids_request({1, 2}, 10000);
  first.rid = "r";
  Stream stream = engine.generate_stream(first);
  ASSERT_TRUE(stream.next());  // it runs
  EXPECT_LOAD_ERROR((void)engine.generate(first), ErrorKind::kValue, "Duplicate request ID detected: r");
  Request twin = ids_request({1}, 1);
  twin.rid = "twin";
  EXPECT_LOAD_ERROR((void)engine.generate({twin, twin}), ErrorKind::kValue, "Duplicate request ID detected: twin");

  auto waiting = engine.generate_async(std::vector<Request>(5, ids_request({4, 5}, 2)));
  EXPECT_LOAD_ERROR((void)engine.generate(twin), ErrorKind::kRuntime, "The request queue is full.");
  stream.abort();
  const auto outputs = waiting.get();
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(outputs[i].output_ids, shadow_greedy({4, 5}, 2));
  for (size_t i = 3; i < 5; ++i) EXPECT_EQ(outputs[i].meta_info.finish_reason->message, "The request queue is full.");
  // Ids are free again once their request has ended.
  EXPECT_EQ(engine.generate(twin)[0].output_ids, shadow_greedy({1}, 1));
}

TEST(EngineRequests, IdsOfOursStepAsideForTheCallers) {
  ShadowEngineOptions options;
  options.model.on_forward = [](const Batch&) { std::this_thread::sleep_for(1ms); };
  Engine engine = make_shadow_engine(std::move(options));
  Request running = ids_request({1, 2}, 10000);
  running.rid = "tm-0";
  Stream stream = engine.generate_stream(running);
  Request named = ids_request({3}, 1);
  named.rid = "tm-1";
  const auto ids = engine.submit({ids_request({4}, 1), named}, [](Output&&) { return true; });
  EXPECT_EQ(ids, (std::vector<std::string>{"tm-2", "tm-1"}));
  EXPECT_EQ(engine.generate(ids_request({5}, 1))[0].meta_info.id, "tm-3");
}

TEST(EngineRequests, SamplesShareAPromptAndASeed) {
  Engine engine = make_shadow_engine({});
  Request request = ids_request(random_ids(1, 40), 8);
  request.sampling_params.temperature = 1.5;
  request.sampling_params.n = 4;
  request.sampling_params.sampling_seed = 11;
  const auto outputs = engine.generate({ids_request({9}, 2), request});
  ASSERT_EQ(outputs.size(), 5u);
  std::set<std::vector<int32_t>> distinct;
  for (size_t i = 1; i < 5; ++i) {
    EXPECT_EQ(outputs[i].sample, static_cast<int64_t>(i) - 1);
    EXPECT_EQ(outputs[i].meta_info.completion_tokens, 8);
    distinct.insert(outputs[i].output_ids);
  }
  EXPECT_EQ(distinct.size(), 4u);
  const auto again = engine.generate(request);
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(again[i].output_ids, outputs[i + 1].output_ids);
  // The prompt is computed once for all of its samples.
  EXPECT_LE(engine.stats().at("blocks_cached"), engine.stats().at("blocks_total"));
  Request alone = request;
  alone.sampling_params.n = 1;
  EXPECT_EQ(engine.generate(alone)[0].output_ids, again[0].output_ids);
}

TEST(EngineRequests, UnseededRequestsFollowTheEnginesSeed) {
  const auto run = [](int64_t seed) {
    Engine engine = make_shadow_engine({.args = {.random_seed = seed}});
    std::vector<std::vector<int32_t>> all;
    Request request = ids_request({1, 2, 3}, 10);
    request.sampling_params.temperature = 1;
    for (const Output& output : engine.generate({request, request})) all.push_back(output.output_ids);
    return all;
  };
  const auto first = run(5);
  EXPECT_EQ(run(5), first);
  EXPECT_NE(run(6), first);
  EXPECT_NE(first[0], first[1]);
}

TEST(EngineRequests, Logprobs) {
  Engine engine = make_shadow_engine(text_engine());
  Request request = text_request("abc", 6);
  request.return_logprob = true;
  request.top_logprobs_num = 3;
  request.token_ids_logprob = {7, 9};
  const Output output = engine.generate(request)[0];
  const MetaInfo& meta = output.meta_info;
  ASSERT_EQ(meta.output_token_logprobs.size(), 6u);
  ASSERT_EQ(meta.output_top_logprobs.size(), 6u);
  ASSERT_EQ(meta.output_token_ids_logprobs.size(), 6u);
  for (size_t i = 0; i < 6; ++i) {
    EXPECT_EQ(meta.output_token_logprobs[i].token_id, output.output_ids[i]);
    EXPECT_LT(*meta.output_token_logprobs[i].logprob, 0);
    EXPECT_TRUE(meta.output_token_logprobs[i].text.has_value());
    ASSERT_EQ(meta.output_top_logprobs[i].size(), 3u);
    EXPECT_EQ(meta.output_top_logprobs[i][0].token_id, output.output_ids[i]);  // greedy
    EXPECT_EQ(meta.output_top_logprobs[i][0].logprob, meta.output_token_logprobs[i].logprob);
    ASSERT_EQ(meta.output_token_ids_logprobs[i].size(), 2u);
    EXPECT_EQ(meta.output_token_ids_logprobs[i][1].token_id, 9);
  }
  EXPECT_TRUE(meta.input_token_logprobs.empty());
}

// The streamed deltas joined are the whole text, whatever stops the output and however it is cut.
TEST(EngineRequests, JoinedDeltasEqualTheText) {
  Engine engine = make_shadow_engine(text_engine());
  int stopped = 0;
  for (int i = 0; i < 60; ++i) {
    Request request = text_request("prompt " + std::to_string(i), 40);
    request.sampling_params.stop = {std::string(1, static_cast<char>('a' + i % 26)), "Z"};
    request.sampling_params.no_stop_trim = i % 3 == 0;
    // Stop strings match inside the name of a special token too, which the text then leaves out.
    request.sampling_params.logit_bias = {{256, -100.0}};
    request.sampling_params.stream_interval = 1 + i % 5;
    const Output whole = engine.generate(request)[0];
    std::string joined;
    std::vector<int32_t> ids;
    for (const Output& chunk : engine.generate_stream(request)) {
      joined += chunk.text;
      ids.insert(ids.end(), chunk.output_ids.begin(), chunk.output_ids.end());
    }
    EXPECT_EQ(joined, whole.text);
    EXPECT_EQ(ids, whole.output_ids);
    const FinishReason& reason = *whole.meta_info.finish_reason;
    if (reason.type != FinishReason::Type::kStop) continue;
    ++stopped;
    const auto& matched = std::get<std::string>(reason.matched);
    EXPECT_EQ(whole.text.find(matched) != std::string::npos, request.sampling_params.no_stop_trim)
        << matched << " in " << ::testing::PrintToString(whole.text) << ::testing::PrintToString(whole.output_ids);
  }
  EXPECT_GT(stopped, 5);
}

TEST(EngineRequests, StopTokens) {
  Engine engine = make_shadow_engine(text_engine());
  Request request = text_request("hello", 50);
  const Output whole = engine.generate(request)[0];
  request.sampling_params.ignore_eos = false;
  request.sampling_params.stop_token_ids = {whole.output_ids[10]};
  const Output stopped = engine.generate(request)[0];
  const auto first = std::find(whole.output_ids.begin(), whole.output_ids.end(), whole.output_ids[10]);
  EXPECT_EQ(stopped.output_ids, std::vector<int32_t>(whole.output_ids.begin(), first + 1));
  EXPECT_EQ(std::get<int64_t>(stopped.meta_info.finish_reason->matched), *first);
  std::vector<int32_t> shown(whole.output_ids.begin(), first);
  EXPECT_EQ(stopped.text, engine.decode_ids(shown));
  request.sampling_params.ignore_eos = true;
  EXPECT_EQ(engine.generate(request)[0].output_ids, whole.output_ids);
}

TEST(EngineRequests, ABadStopRegexEndsItsItemOrRaises) {
  Engine engine = make_shadow_engine(text_engine());
  Request request = text_request("hello", 5);
  request.sampling_params.stop_regex = {"(["};
  EXPECT_THROW((void)engine.generate(request), Error);
  const auto outputs = engine.generate({text_request("a", 2), request});
  EXPECT_EQ(outputs[0].output_ids.size(), 2u);
  EXPECT_EQ(outputs[1].meta_info.finish_reason->type, FinishReason::Type::kAbort);
}

TEST(EngineRequests, BansAndBiases) {
  Engine engine = make_shadow_engine(text_engine());
  Request request = text_request("hello", 20);
  request.sampling_params.allowed_token_ids = {{65, 66, 67}};
  request.sampling_params.bad_words = {"A"};
  const Output allowed = engine.generate(request)[0];
  EXPECT_EQ(allowed.output_ids.size(), 20u);
  for (const int32_t id : allowed.output_ids) EXPECT_TRUE(id == 66 || id == 67) << id;
  request = text_request("hello", 5);
  request.sampling_params.logit_bias = {{100, 50.0}};
  EXPECT_EQ(engine.generate(request)[0].text, "ddddd");
}

TEST(EngineRequests, LogitProcessor) {
  Engine engine = make_shadow_engine({});
  std::vector<std::vector<int32_t>> seen;
  const auto with = [](std::vector<int32_t> ids, LogitProcessor processor) {
    Request request = ids_request(std::move(ids), 4);
    request.sampling_params.custom_logit_processor = std::make_shared<const LogitProcessor>(std::move(processor));
    return request;
  };
  std::vector<Request> requests;
  requests.push_back(ids_request({1, 2, 3}, 4));
  requests.push_back(with({1, 2, 3}, [&](std::span<const int32_t> output_ids, std::span<float> logits) {
    seen.emplace_back(output_ids.begin(), output_ids.end());
    EXPECT_EQ(logits.size(), 512u);
    logits[77] = 1e9f;
  }));
  requests.push_back(with({1, 2, 3}, [](std::span<const int32_t> output_ids, std::span<float> logits) {
    if (output_ids.size() == 2) throw std::runtime_error("no such word");
    logits[5] = 1e9f;
  }));
  const std::vector<Output> outputs = engine.generate(std::move(requests));
  EXPECT_EQ(outputs[0].output_ids, shadow_greedy({1, 2, 3}, 4));
  EXPECT_EQ(outputs[1].output_ids, std::vector<int32_t>(4, 77));
  EXPECT_EQ(seen, (std::vector<std::vector<int32_t>>{{}, {77}, {77, 77}, {77, 77, 77}}));
  EXPECT_EQ(outputs[2].output_ids, std::vector<int32_t>(2, 5));
  EXPECT_EQ(outputs[2].meta_info.finish_reason->message, "custom_logit_processor failed: no such word");
}

// In a list, where nothing can be sampled is an item's own end; alone it is the call's error, however it is called.
TEST(EngineRequests, AloneWhatCannotBeSampledThrows) {
  Engine engine = make_shadow_engine({});
  Request throws = ids_request({1, 2, 3}, 6), masked = ids_request({1, 2, 3}, 6);
  throws.sampling_params.custom_logit_processor =
      std::make_shared<const LogitProcessor>([](std::span<const int32_t> output_ids, std::span<float>) {
        if (output_ids.size() == 2) throw std::runtime_error("no such word");
      });
  masked.sampling_params.custom_logit_processor =
      std::make_shared<const LogitProcessor>([](std::span<const int32_t> output_ids, std::span<float> logits) {
        if (output_ids.size() == 2) std::ranges::fill(logits, -std::numeric_limits<float>::infinity());
      });
  const std::vector<int32_t> two = shadow_greedy({1, 2, 3}, 2);
  for (const auto& [request, says] : {std::pair(throws, "custom_logit_processor failed: no such word"),
                                      std::pair(masked, "every token was masked")}) {
    for (const int64_t samples : {1, 3}) {
      Request single = request;
      single.sampling_params.n = samples;
      EXPECT_LOAD_ERROR((void)engine.generate(single), ErrorKind::kValue, says);
      Stream stream = engine.generate_stream(single);
      std::vector<int32_t> told;
      EXPECT_LOAD_ERROR(
          {
            while (const auto chunk = stream.next()) {
              if (chunk->sample == 0) told.insert(told.end(), chunk->output_ids.begin(), chunk->output_ids.end());
            }
          },
          ErrorKind::kValue, says);
      EXPECT_EQ(told, two);
      int failures = 0, outputs = 0;
      std::promise<void> done;
      engine.submit(
          single, [&](Output&&) { return ++outputs, true; },
          [&](const Error& error) {
            EXPECT_EQ(error.kind(), ErrorKind::kValue);
            ++failures;
            done.set_value();
          });
      done.get_future().wait();
      EXPECT_EQ(failures, 1);
      EXPECT_EQ(outputs, 0);
    }
    const auto outputs = engine.generate({request, ids_request({1, 2, 3}, 6)});
    EXPECT_EQ(outputs[0].output_ids, two);
    EXPECT_NE(outputs[0].meta_info.finish_reason->message.find(says), std::string::npos);
    EXPECT_EQ(outputs[1].output_ids, shadow_greedy({1, 2, 3}, 6));
    // Without on_failure there is an Output, as ever.
    std::promise<std::string> message;
    engine.submit(request, [&](Output&& output) {
      message.set_value(output.meta_info.finish_reason->message);
      return true;
    });
    EXPECT_NE(message.get_future().get().find(says), std::string::npos);
  }
}

TEST(EngineRequests, ChatAndTokenizerCalls) {
  Engine engine = make_shadow_engine(text_engine());
  Request request = text_request("", 3);
  request.prompt.reset();
  request.messages_json = R"([{"role": "user", "content": "hi"}])";
  request.return_prompt_token_ids = true;
  EXPECT_EQ(engine.apply_chat_template(*request.messages_json), "user:hi;");
  EXPECT_EQ(engine.generate(request)[0].prompt_token_ids, engine.encode_text("user:hi;"));
  EXPECT_EQ(engine.decode_ids({104, 105}), "hi");
  EXPECT_EQ(engine.eos_token_ids(), std::vector<int32_t>{256});
  EXPECT_EQ(engine.vocab_size(), 257);
}

TEST(EngineRequests, InfoStatsAndLogs) {
  std::mutex mutex;
  std::string log;
  ShadowEngineOptions options = text_engine();
  options.args.log_requests = true;
  options.args.show_time_cost = true;
  options.args.decode_log_interval = 4;
  options.on_log = [&](const std::string& line) {
    const std::lock_guard lock(mutex);
    log += line + "\n";
  };
  Engine engine = make_shadow_engine(std::move(options));
  (void)engine.generate(text_request("abc", 12));
  const auto info = nlohmann::json::parse(engine.server_info_json());
  EXPECT_EQ(info.at("page_size"), 32);
  EXPECT_EQ(info.at("max_total_num_tokens"), 1 << 16);
  EXPECT_EQ(info.at("version"), version());
  EXPECT_TRUE(info.at("internal_states").at(0).contains("last_gen_throughput"));
  EXPECT_TRUE(info.at("startup").contains("total_s"));
  const auto stats = engine.stats();
  for (const char* key : {"requests", "finished", "aborted", "running", "queue", "prompt_tokens", "cached_tokens",
                          "generated_tokens", "evictions", "retractions", "blocks_free", "blocks_total"}) {
    EXPECT_TRUE(stats.contains(key)) << key;
  }
  EXPECT_EQ(stats.at("prompt_tokens"), 3);
  EXPECT_EQ(stats.at("generated_tokens"), 12);
  const std::lock_guard lock(mutex);
  for (const char* text :
       {"TP0] max_total_num_tokens=65536, max_prefill_tokens=16384, max_running_requests=256, context_len=16384",
        "TP0] Memory pool end. avail mem=", "TP0] Prefill batch. #new-seq: 1, #new-token: 3, #cached-token: 0",
        "TP0] Decode batch. #running-req: 1", "Receive: rid=tm-0, prompt='abc'", "Finish: rid=tm-0",
        "Step time (mean of 4): admit"}) {
    EXPECT_NE(log.find(text), std::string::npos) << text << "\n" << log;
  }
}

}  // namespace
}  // namespace tokenmill::testing
