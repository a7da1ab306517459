// Salts, pins, time-outs, eviction policies and lazy lists through the whole engine.
#include <gtest/gtest.h>

#include <set>
#include <stdexcept>
#include <thread>

#include "scenarios/shadow_model.h"
#include "util/expect_error.h"

namespace tokenmill::testing {
namespace {

int64_t cached(Engine& engine, std::vector<int32_t> ids, std::optional<std::string> salt = std::nullopt) {
  Request request = ids_request(std::move(ids), 3);
  request.cache_salt = std::move(salt);
  const auto expected = shadow_greedy(*request.input_ids, 3);
  const Output output = engine.generate(request)[0];
  EXPECT_EQ(output.output_ids, expected);
  return output.meta_info.cached_tokens;
}

TEST(EngineSalt, PrefixesAreSharedWithinOneSaltOnly) {
  Engine engine = make_shadow_engine({});
  const auto ids = random_ids(1, 100);
  EXPECT_EQ(cached(engine, ids), 0);
  EXPECT_EQ(cached(engine, ids, "tenant a"), 0);
  EXPECT_EQ(cached(engine, ids, "tenant b"), 0);
  EXPECT_EQ(cached(engine, ids, "tenant a"), 99);
  EXPECT_EQ(cached(engine, ids), 99);
  EXPECT_EQ(cached(engine, ids, ""), 99);  // no salt
}

TEST(EngineSalt, NorInOneBatch) {
  Engine engine = make_shadow_engine({});
  std::vector<Request> requests;
  for (int i = 0; i < 6; ++i) {
    requests.push_back(ids_request(random_ids(1, 100), 3));
    requests.back().cache_salt = i % 2 ? "a" : "b";
  }
  int64_t total = 0;
  for (const Output& output : engine.generate(requests)) total += output.meta_info.cached_tokens;
  EXPECT_EQ(total, 4 * 99);
}

TEST(EnginePin, KeepsAPrefixThroughEvictionUntilReleased) {
  Engine engine = make_shadow_engine({.args = {.max_total_tokens = 1024, .page_size = 16}});
  const auto system = random_ids(5, 200);
  PinnedPrefix pin = engine.pin(ids_request(system, 50));
  EXPECT_EQ(pin.tokens(), 200);
  const auto evict_all = [&] {
    for (uint64_t i = 0; i < 8; ++i) engine.generate(ids_request(random_ids(100 + i, 500), 2));
  };
  evict_all();
  EXPECT_EQ(cached(engine, system), 199);
  EXPECT_EQ(engine.stats().at("blocks_pinned"), 13);
  PinnedPrefix moved = std::move(pin);
  pin.release();  // moved from
  evict_all();
  EXPECT_TRUE(engine.flush_cache());
  EXPECT_EQ(cached(engine, system), 199);
  moved.release();
  moved.release();
  EXPECT_TRUE(engine.flush_cache());
  EXPECT_EQ(cached(engine, system), 0);
  EXPECT_EQ(engine.stats().at("blocks_pinned"), 0);
}

TEST(EnginePin, ErrorsAreTheCallers) {
  Engine engine = make_shadow_engine({.model = {.context_length = 2000}, .args = {.max_total_tokens = 1024}});
  EXPECT_LOAD_ERROR((void)engine.pin(ids_request(random_ids(1, 3000), 1)), ErrorKind::kValue, "context length");
  EXPECT_LOAD_ERROR((void)engine.pin(ids_request(random_ids(1, 1500), 1)), ErrorKind::kValue, "KV memory");
  EXPECT_LOAD_ERROR((void)engine.pin(ids_request(random_ids(1, 900), 1)), ErrorKind::kValue, "three quarters");
  EXPECT_LOAD_ERROR((void)engine.pin({}), ErrorKind::kValue, "Either text or input_ids");
  std::optional<PinnedPrefix> outlives;
  outlives.emplace(engine.pin(ids_request(random_ids(1, 100), 1)));
  engine.shutdown();
  EXPECT_NO_THROW(outlives.reset());
  Engine uncached = make_shadow_engine({.args = {.disable_radix_cache = true}});
  EXPECT_LOAD_ERROR((void)uncached.pin(ids_request({1, 2}, 1)), ErrorKind::kValue, "disable_radix_cache");
}

TEST(EngineTimeouts, EndTheirOwnRequests) {
  ShadowEngineOptions options;
  options.args.max_running_requests = 1;
  options.args.waiting_timeout = 0.15;
  options.args.running_timeout = 0.6;
  options.model.on_forward = [](const Batch&) { std::this_thread::sleep_for(std::chrono::milliseconds(10)); };
  Engine engine = make_shadow_engine(std::move(options));
  const auto outputs = engine.generate({ids_request(random_ids(1, 10), 1000), ids_request(random_ids(2, 10), 1000)});
  for (const Output& output : outputs) EXPECT_EQ(output.meta_info.finish_reason->type, FinishReason::Type::kAbort);
  EXPECT_NE(outputs[0].meta_info.finish_reason->message.find("running_timeout"), std::string::npos);
  EXPECT_NE(outputs[1].meta_info.finish_reason->message.find("waiting_timeout"), std::string::npos);
  EXPECT_GT(outputs[0].output_ids.size(), 3u);
  EXPECT_EQ(outputs[0].output_ids,
            shadow_greedy(random_ids(1, 10), static_cast<int64_t>(outputs[0].output_ids.size())));
  EXPECT_TRUE(outputs[1].output_ids.empty());
  EXPECT_EQ(engine.stats().at("timeouts"), 2);
  EXPECT_EQ(engine.generate(ids_request({1, 2, 3}, 2))[0].output_ids, shadow_greedy({1, 2, 3}, 2));
}

TEST(EngineEviction, LfuKeepsWhatIsUsedOften) {
  for (const char* policy : {"lru", "lfu"}) {
    Engine engine =
        make_shadow_engine({.args = {.max_total_tokens = 512, .page_size = 16, .radix_eviction_policy = policy}});
    const auto often = random_ids(1, 100);
    for (int i = 0; i < 5; ++i) cached(engine, often);
    for (uint64_t i = 0; i < 20; ++i) cached(engine, random_ids(100 + i, 100));
    EXPECT_EQ(cached(engine, often) > 0, policy == std::string("lfu"));
  }
}

TEST(EngineAbort, EndsAllSamplesOfARequestAndNoOther) {
  ShadowEngineOptions options;
  options.args.max_running_requests = 3;  // some samples run, some wait
  const auto core = make_shadow_core(std::move(options));
  Request group = ids_request(random_ids(1, 50), 400);
  group.sampling_params.n = 5;
  group.sampling_params.temperature = 1;
  group.rid = "group";
  std::map<int64_t, Output> ends;
  auto call = std::make_shared<Call>();
  call->on_output = [&](Output&& output) {
    const int64_t index = output.index;
    ends.emplace(index, std::move(output));
    return true;
  };
  core->submit({group, ids_request(random_ids(2, 20), 30)}, call, false);
  for (int i = 0; i < 6; ++i) core->step();
  core->abort("group");
  while (core->step()) {
  }
  core->deliver();
  ASSERT_EQ(ends.size(), 6u);
  for (const auto& [index, output] : ends) {
    EXPECT_EQ(output.meta_info.finish_reason->type == FinishReason::Type::kAbort, index < 5) << index;
  }
  EXPECT_EQ(ends.at(5).output_ids, shadow_greedy(random_ids(2, 20), 30));
  EXPECT_TRUE(core->flush_cache());
}

TEST(EngineIter, PullsNoFurtherThanItsWindow) {
  Engine engine = make_shadow_engine({.args = {.max_running_requests = 8, .max_queued_requests = 20}});
  const auto thread = std::this_thread::get_id();
  int64_t pulled = 0, told = 0, furthest = 0;
  std::set<int64_t> seen;
  engine.generate_iter(
      [&]() -> std::optional<Request> {
        EXPECT_EQ(std::this_thread::get_id(), thread);
        if (pulled == 300) return std::nullopt;
        furthest = std::max(furthest, pulled + 1 - told);
        Request request = ids_request(random_ids(static_cast<uint64_t>(pulled++), 12), 4);
        if (pulled == 100) request.input_ids = {1, 100000};  // not valid: its own error
        if (pulled == 200) request.sampling_params.n = 3;
        return request;
      },
      [&](Output&& output) {
        EXPECT_EQ(std::this_thread::get_id(), thread);
        ++told;
        EXPECT_TRUE(output.finished());
        seen.insert(output.index);
        if (output.index == 99) {
          EXPECT_NE(output.meta_info.finish_reason->message.find("input_ids must be"), std::string::npos);
        } else {
          EXPECT_EQ(output.output_ids, shadow_greedy(random_ids(static_cast<uint64_t>(output.index), 12), 4));
        }
        return true;
      });
  EXPECT_EQ(told, 302);
  EXPECT_EQ(seen.size(), 300u);
  EXPECT_LE(furthest, 20);
}

TEST(EngineIter, StopsWhenToldToAndWhenAFunctionThrows) {
  Engine engine = make_shadow_engine({});
  int64_t pulled = 0, told = 0;
  const auto endless = [&]() -> std::optional<Request> {
    return ids_request(random_ids(static_cast<uint64_t>(pulled++), 12), 4);
  };
  engine.generate_iter(endless, [&](Output&&) { return ++told < 10; });
  EXPECT_EQ(told, 10);
  EXPECT_THROW(engine.generate_iter(endless, [](Output&&) -> bool { throw std::runtime_error("enough"); }),
               std::runtime_error);
  pulled = 0;
  EXPECT_THROW(engine.generate_iter(
                   [&]() -> std::optional<Request> {
                     if (pulled++ == 5) throw std::runtime_error("the file ended early");
                     return ids_request({1, 2, 3}, 400);
                   },
                   [](Output&&) { return true; }),
               std::runtime_error);
  // What still ran is aborted: the engine becomes idle.
  const auto busy = [&] { return engine.stats().at("running") + engine.stats().at("queue") > 0; };
  for (int i = 0; i < 500 && busy(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_FALSE(busy());
  EXPECT_TRUE(engine.flush_cache());
  engine.generate_iter([]() -> std::optional<Request> { return std::nullopt; }, [](Output&&) { return true; });
}

}  // namespace
}  // namespace tokenmill::testing
