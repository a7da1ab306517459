// Every way to end a request early: it ends within a step and its KV comes back.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>

#include "scenarios/shadow_model.h"
#include "util/expect_error.h"

namespace tokenmill::testing {
namespace {

using namespace std::chrono_literals;

ShadowEngineOptions slow_engine() {
  ShadowEngineOptions options;
  options.model.on_forward = [](const Batch&) { std::this_thread::sleep_for(1ms); };
  return options;
}

// Waits until nothing runs or waits; false when it takes more than five seconds.
bool becomes_idle(const Engine& engine) {
  for (int i = 0; i < 5000; ++i) {
    const auto stats = engine.stats();
    if (stats.at("running") == 0 && stats.at("queue") == 0 &&
        stats.at("finished") + stats.at("aborted") == stats.at("requests")) {
      return true;
    }
    std::this_thread::sleep_for(1ms);
  }
  return false;
}

void expect_all_freed(OpenEngine& open) {
  Engine& engine = open.engine;
  ASSERT_TRUE(becomes_idle(engine));
  EXPECT_NO_THROW(open.core->check_integrity());
  EXPECT_TRUE(engine.flush_cache());
  EXPECT_NO_THROW(open.core->check_integrity());
  // Two prompts still fit a pool that leaked nothing.
  EXPECT_EQ(engine.generate(ids_request({1, 2, 3}, 2))[0].output_ids, shadow_greedy({1, 2, 3}, 2));
}

TEST(EngineCancel, CallbackReturnsFalse) {
  OpenEngine open(slow_engine());
  Engine& engine = open.engine;
  Request request = ids_request(random_ids(1, 10), 5000);
  request.stream = true;
  std::atomic<int> chunks{0};
  engine.submit(request, [&](Output&&) { return ++chunks < 3; });
  expect_all_freed(open);
  EXPECT_EQ(chunks, 3);
  EXPECT_EQ(engine.stats().at("aborted"), 1);
}

TEST(EngineCancel, CallbackThrows) {
  std::atomic<int> logged{0};
  ShadowEngineOptions options = slow_engine();
  options.on_log = [&](const std::string& line) { logged += line.find("on_output threw") != line.npos; };
  OpenEngine open(std::move(options));
  Engine& engine = open.engine;
  Request request = ids_request(random_ids(1, 10), 5000);
  request.stream = true;
  engine.submit(request, [](Output&&) -> bool { throw std::runtime_error("mine"); });
  expect_all_freed(open);
  EXPECT_EQ(logged, 1);
}

TEST(EngineCancel, DroppedStream) {
  OpenEngine open(slow_engine());
  Engine& engine = open.engine;
  {
    Stream stream = engine.generate_stream({ids_request({1, 2}, 5000), ids_request({3, 4}, 5000)});
    ASSERT_TRUE(stream.next());
  }
  expect_all_freed(open);
  EXPECT_EQ(engine.stats().at("aborted"), 2);
}

TEST(EngineCancel, AbortByIdEndsWithAReason) {
  OpenEngine open(slow_engine());
  Engine& engine = open.engine;
  Request request = ids_request(random_ids(1, 10), 5000);
  request.rid = "long";
  auto waiting = engine.generate_async({request, ids_request({5, 6}, 5)});
  std::this_thread::sleep_for(20ms);
  engine.abort("nobody");
  engine.abort("long");
  const auto outputs = waiting.get();
  ASSERT_TRUE(outputs[0].finished());
  EXPECT_EQ(outputs[0].meta_info.finish_reason->type, FinishReason::Type::kAbort);
  EXPECT_EQ(static_cast<int64_t>(outputs[0].output_ids.size()), outputs[0].meta_info.completion_tokens);
  EXPECT_EQ(outputs[1].output_ids, shadow_greedy({5, 6}, 5));
  expect_all_freed(open);
}

TEST(EngineCancel, AbortAll) {
  ShadowEngineOptions options = slow_engine();
  options.args.max_running_requests = 2;
  OpenEngine open(std::move(options));
  Engine& engine = open.engine;
  std::vector<Request> requests;
  for (uint64_t i = 0; i < 40; ++i) requests.push_back(ids_request(random_ids(i, 6), 1000));
  auto waiting = engine.generate_async(requests);
  std::this_thread::sleep_for(20ms);
  engine.abort_all();
  for (const Output& output : waiting.get()) {
    EXPECT_EQ(output.meta_info.finish_reason->type, FinishReason::Type::kAbort);
  }
  expect_all_freed(open);
}

TEST(EngineCancel, AbortOfAListThatIsStillBeingFed) {
  ShadowEngineOptions options = slow_engine();
  options.args.max_running_requests = 1;
  OpenEngine open(std::move(options));
  Engine& engine = open.engine;
  std::vector<Request> requests;
  for (uint64_t i = 0; i < 6000; ++i) requests.push_back(ids_request({1, 2, static_cast<int32_t>(i % 250)}, 4));
  auto waiting = engine.generate_async(requests);
  engine.abort_all();
  int64_t ended = 0;
  for (const Output& output : waiting.get()) ended += output.finished();
  EXPECT_EQ(ended, 6000);
  expect_all_freed(open);
}

TEST(EngineCancel, ACallThatIsStoppedWhileItIsTokenised) {
  ShadowEngineOptions options = slow_engine();
  options.args.num_threads = 1;  // else another thread may be done before this one asks
  OpenEngine open(std::move(options));
  Engine& engine = open.engine;
  const std::vector<Request> requests(200, ids_request({1, 2}, 4));
  const auto caller = std::this_thread::get_id();
  int asked = 0, told = 0;
  const KeepGoing keep_going = [&] {
    EXPECT_EQ(std::this_thread::get_id(), caller);
    return ++asked < 10;
  };
  const OutputCallback on_output = [&](Output&&) { return ++told > 0; };
  EXPECT_LOAD_ERROR(engine.submit(requests, on_output, nullptr, keep_going), ErrorKind::kRuntime, "was stopped");
  EXPECT_EQ(asked, 10);
  EXPECT_EQ(engine.stats().at("aborted"), 200);
  expect_all_freed(open);
  EXPECT_EQ(told, 0);
  // Ids are free again, and a call that may go on does.
  std::vector<Request> named(2, ids_request({1, 2}, 4));
  named[0].rid = "a";
  named[1].rid = "b";
  EXPECT_THROW(engine.submit(named, on_output, nullptr, [] { return false; }), Error);
  engine.submit(named, on_output, nullptr, [] { return true; });
  expect_all_freed(open);
}

TEST(EngineCancel, NothingRunsOrWaitsAfterShutdown) {
  OpenEngine open(slow_engine());
  Engine& engine = open.engine;
  Stream stream = engine.generate_stream({ids_request({1, 2}, 5000), ids_request({3, 4}, 5000)});
  ASSERT_TRUE(stream.next());
  EXPECT_EQ(engine.stats().at("running"), 2);
  engine.shutdown();
  const auto stats = engine.stats();
  EXPECT_EQ(stats.at("running"), 0);
  EXPECT_EQ(stats.at("queue"), 0);
  EXPECT_EQ(stats.at("blocks_free"), stats.at("blocks_total"));
}

TEST(EngineCancel, FlushWaitsForNobody) {
  std::vector<std::string> lines;
  std::mutex mutex;
  ShadowEngineOptions options = slow_engine();
  options.on_log = [&](const std::string& line) {
    const std::lock_guard lock(mutex);
    lines.push_back(line);
  };
  OpenEngine open(std::move(options));
  Engine& engine = open.engine;
  Stream stream = engine.generate_stream(ids_request({1, 2}, 5000));
  ASSERT_TRUE(stream.next());
  EXPECT_FALSE(engine.flush_cache());
  stream.abort();
  ASSERT_TRUE(becomes_idle(engine));
  EXPECT_TRUE(engine.flush_cache());
  const std::lock_guard lock(mutex);
  const auto times = [&](const char* text) {
    return std::count_if(lines.begin(), lines.end(), [&](const auto& line) { return line.find(text) != line.npos; });
  };
  EXPECT_EQ(times("TP0] Cache not flushed because there are pending requests. #queue-req: 0, #running-req: 1"), 1);
  EXPECT_EQ(times("TP0] Cache flushed successfully!"), 1);
}

}  // namespace
}  // namespace tokenmill::testing
