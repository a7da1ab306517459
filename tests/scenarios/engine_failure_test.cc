// What goes wrong inside: a failed step ends its requests, a broken invariant ends the engine, shutdown ends all calls;
// the process goes on each time.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <new>
#include <thread>

#include "base/check.h"
#include "scenarios/shadow_model.h"
#include "util/expect_error.h"

namespace tokenmill::testing {
namespace {

using namespace std::chrono_literals;

// An engine whose forward pass `fail` may end, from the time `armed` is set.
struct FaultyEngine {
  std::shared_ptr<std::atomic<bool>> armed = std::make_shared<std::atomic<bool>>(false);
  OpenEngine open;
  Engine& engine = open.engine;
  explicit FaultyEngine(std::function<void()> fail)
      : open({.model = {.on_forward = [armed = armed, fail](const Batch&) {
                if (armed->load()) fail();
              }}}) {}
};

TEST(EngineFailure, AFailedForwardEndsItsRequestsOnly) {
  FaultyEngine faulty([] { throw std::runtime_error("device fell over"); });
  *faulty.armed = true;
  const Output output = faulty.engine.generate(ids_request({1, 2, 3}, 5))[0];
  EXPECT_EQ(output.meta_info.finish_reason->type, FinishReason::Type::kAbort);
  EXPECT_NE(output.meta_info.finish_reason->message.find("device fell over"), std::string::npos);
  *faulty.armed = false;
  EXPECT_NO_THROW(faulty.open.core->check_integrity());
  // What the failed step was to write is not taken for cached.
  const Output again = faulty.engine.generate(ids_request({1, 2, 3}, 5))[0];
  EXPECT_EQ(again.output_ids, shadow_greedy({1, 2, 3}, 5));
  EXPECT_EQ(again.meta_info.cached_tokens, 0);
  EXPECT_NO_THROW(faulty.open.core->check_integrity());
}

void expect_death(std::function<void()> fail, const char* message) {
  FaultyEngine faulty(std::move(fail));
  Engine& engine = faulty.engine;
  auto waiting = engine.generate_async({ids_request({1, 2}, 5), ids_request({3, 4}, 100000)});
  Stream stream = engine.generate_stream(ids_request({7, 8}, 100000));
  std::promise<Output> told;
  engine.submit(ids_request({5, 6}, 100000), [&](Output&& output) {
    told.set_value(std::move(output));
    return true;
  });
  ASSERT_TRUE(stream.next());
  *faulty.armed = true;
  EXPECT_LOAD_ERROR((void)waiting.get(), ErrorKind::kRuntime, "The engine has stopped", message);
  EXPECT_LOAD_ERROR(while (stream.next()){}, ErrorKind::kRuntime, "The engine has stopped");
  EXPECT_EQ(told.get_future().get().meta_info.finish_reason->type, FinishReason::Type::kAbort);
  EXPECT_LOAD_ERROR((void)engine.generate(ids_request({1}, 1)), ErrorKind::kRuntime, "The engine has stopped");
  EXPECT_LOAD_ERROR((void)engine.flush_cache(), ErrorKind::kRuntime, "The engine has stopped");
  engine.abort_all();
  const auto stats = engine.stats();
  EXPECT_EQ(stats.at("finished") + stats.at("aborted"), 4);  // the short one may have finished before
  EXPECT_GE(stats.at("aborted"), 3);
  engine.shutdown();
}

TEST(EngineFailure, ABrokenInvariantEndsTheEngine) {
  expect_death([] { TM_CHECK(1 + 1 == 3); }, "1 + 1 == 3");
}

TEST(EngineFailure, RunningOutOfMemoryEndsTheEngine) {
  expect_death([] { throw std::bad_alloc(); }, "bad_alloc");
}

TEST(EngineFailure, ACallThatAsksIsToldOnce) {
  ShadowEngineOptions options;
  options.model.on_forward = [](const Batch&) { std::this_thread::sleep_for(1ms); };
  Engine engine = make_shadow_engine(std::move(options));
  std::atomic<int> outputs{0}, failures{0};
  std::string message;
  engine.submit(
      {ids_request({1, 2}, 100000), ids_request({3, 4}, 100000)},
      [&](Output&&) {
        ++outputs;
        return true;
      },
      [&](const Error& error) {
        ++failures;
        message = error.what();
        throw std::runtime_error("a callback that breaks its promise");
      });
  engine.shutdown();
  EXPECT_EQ(outputs, 0);
  EXPECT_EQ(failures, 1);
  EXPECT_EQ(message, "The engine was shut down.");
}

TEST(EngineFailure, ShutdownEndsOpenCallsWithinASecond) {
  ShadowEngineOptions options;
  options.model.on_forward = [](const Batch&) { std::this_thread::sleep_for(1ms); };
  Engine engine = make_shadow_engine(std::move(options));
  Stream stream = engine.generate_stream(ids_request({1, 2}, 100000));
  auto waiting = engine.generate_async({ids_request({3, 4}, 100000)});
  ASSERT_TRUE(stream.next());
  const auto start = std::chrono::steady_clock::now();
  std::thread stopper([&] { engine.shutdown(); });
  EXPECT_LOAD_ERROR(while (stream.next()){}, ErrorKind::kRuntime, "The engine was shut down.");
  EXPECT_LOAD_ERROR((void)waiting.get(), ErrorKind::kRuntime, "The engine was shut down.");
  stopper.join();
  EXPECT_LT(std::chrono::steady_clock::now() - start, 1s);
  engine.shutdown();
  EXPECT_LOAD_ERROR((void)engine.generate(ids_request({1}, 1)), ErrorKind::kRuntime, "The engine was shut down.");
  EXPECT_TRUE(stream.done());
}

TEST(EngineFailure, AStreamMayOutliveItsEngine) {
  std::optional<Stream> stream;
  {
    Engine engine = make_shadow_engine({});
    stream.emplace(engine.generate_stream(ids_request({1, 2}, 10000)));
  }
  EXPECT_LOAD_ERROR(while (stream->next()){}, ErrorKind::kRuntime, "The engine was shut down.");
  stream.reset();
}

TEST(EngineFailure, WaitingInsideACallbackThrows) {
  Engine engine = make_shadow_engine({});
  std::promise<std::string> message;
  engine.submit(ids_request({1, 2}, 1), [&](Output&&) {
    try {
      (void)engine.generate(ids_request({1}, 1));
      message.set_value("no error");
    } catch (const Error& error) {
      message.set_value(error.what());
    }
    return true;
  });
  EXPECT_NE(message.get_future().get().find("inside on_output"), std::string::npos);
}

TEST(EngineFailure, TheWatchdogNamesALongStep) {
  std::atomic<int> warned{0};
  ShadowEngineOptions options;
  options.args.watchdog_timeout = 0.05;
  options.model.on_forward = [](const Batch&) { std::this_thread::sleep_for(300ms); };
  options.on_log = [&](const std::string& line) { warned += line.find("watchdog_timeout=0.05") != line.npos; };
  Engine engine = make_shadow_engine(std::move(options));
  (void)engine.generate(ids_request({1, 2}, 1));
  EXPECT_EQ(warned, 1);
}

TEST(EngineFailure, TwentyEnginesInARow) {
  for (int i = 0; i < 20; ++i) {
    Engine engine = make_shadow_engine({});
    EXPECT_EQ(engine.generate(ids_request({1, 2, i}, 3))[0].output_ids, shadow_greedy({1, 2, i}, 3));
    if (i % 2 == 0) engine.shutdown();
  }
}

}  // namespace
}  // namespace tokenmill::testing
