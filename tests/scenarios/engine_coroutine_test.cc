// co_await on a Stream: on the output thread and on an executor, with failures, aborts and coroutines that are dropped.
#include <gtest/gtest.h>

#include <condition_variable>
#include <coroutine>
#include <deque>
#include <future>
#include <mutex>
#include <thread>

#include "base/check.h"
#include "scenarios/shadow_model.h"

namespace tokenmill::testing {
namespace {

using namespace std::chrono_literals;

// The smallest coroutine type that owns its frame and tells its result to a future.
class Job {
 public:
  struct promise_type {
    std::promise<std::vector<int32_t>> result;
    std::vector<int32_t> ids;
    std::exception_ptr error;
    Job get_return_object() { return Job(std::coroutine_handle<promise_type>::from_promise(*this)); }
    std::suspend_never initial_suspend() noexcept { return {}; }
    // Told once the frame is suspended for good, and from the stack: whoever has the result may destroy the frame.
    struct Tell {
      bool await_ready() noexcept { return false; }
      void await_suspend(std::coroutine_handle<promise_type> handle) noexcept {
        std::promise<std::vector<int32_t>> result = std::move(handle.promise().result);
        if (const std::exception_ptr error = handle.promise().error) {
          result.set_exception(error);
        } else {
          result.set_value(std::vector<int32_t>(std::move(handle.promise().ids)));
        }
      }
      void await_resume() noexcept {}
    };
    Tell final_suspend() noexcept { return {}; }
    void return_value(std::vector<int32_t> value) { ids = std::move(value); }
    void unhandled_exception() { error = std::current_exception(); }
  };

  explicit Job(std::coroutine_handle<promise_type> handle)
      : handle_(handle), ids_(handle.promise().result.get_future()) {}
  Job(Job&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)), ids_(std::move(other.ids_)) {}
  ~Job() {
    if (handle_) handle_.destroy();
  }
  std::vector<int32_t> get() { return ids_.get(); }

 private:
  std::coroutine_handle<promise_type> handle_;
  std::future<std::vector<int32_t>> ids_;
};

// One thread that runs what is posted.
class Loop {
 public:
  Loop() : thread_([this] { run(); }) {}
  ~Loop() {
    post(nullptr);
    thread_.join();
  }
  void post(std::function<void()> work) {
    const std::lock_guard lock(mutex_);
    work_.push_back(std::move(work));
    arrived_.notify_one();
  }
  // Runs `work` on the loop and waits for it.
  void call(std::function<void()> work) {
    std::promise<void> done;
    post([&] {
      work();
      done.set_value();
    });
    done.get_future().wait();
  }
  std::thread::id id() const { return thread_.get_id(); }

 private:
  void run() {
    while (true) {
      std::unique_lock lock(mutex_);
      arrived_.wait(lock, [&] { return !work_.empty(); });
      const auto work = std::move(work_.front());
      work_.pop_front();
      lock.unlock();
      if (!work) return;
      work();
    }
  }
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<std::function<void()>> work_;
  std::thread thread_;
};

Job read(Stream stream, std::function<void()> on_chunk = nullptr) {
  std::vector<int32_t> ids;
  while (const std::optional<Output> chunk = co_await stream.next_async()) {
    ids.insert(ids.end(), chunk->output_ids.begin(), chunk->output_ids.end());
    if (on_chunk) on_chunk();
  }
  co_return ids;
}

Job read_on(Loop& loop, Stream stream, std::function<void()> on_chunk = nullptr) {
  stream.resume_on([&loop](std::function<void()> resume) { loop.post(std::move(resume)); });
  return read(std::move(stream), std::move(on_chunk));
}

ShadowEngineOptions slow_engine() {
  ShadowEngineOptions options;
  options.model.on_forward = [](const Batch&) { std::this_thread::sleep_for(1ms); };
  return options;
}

bool becomes_idle(const Engine& engine) {
  for (int i = 0; i < 5000; ++i) {
    const auto stats = engine.stats();
    if (stats.at("finished") + stats.at("aborted") == stats.at("requests")) return true;
    std::this_thread::sleep_for(1ms);
  }
  return false;
}

TEST(EngineCoroutine, OnTheOutputThread) {
  OpenEngine open(ShadowEngineOptions{});
  const auto prompt = random_ids(1, 12);
  std::vector<std::thread::id> threads;
  Job job = read(open.engine.generate_stream(ids_request(prompt, 30)),
                 [&] { threads.push_back(std::this_thread::get_id()); });
  EXPECT_EQ(job.get(), shadow_greedy(prompt, 30));
  EXPECT_GE(threads.size(), 1u);
}

TEST(EngineCoroutine, OnAnExecutorManyAtOnce) {
  OpenEngine open(ShadowEngineOptions{});
  Loop loop;
  std::atomic<int> elsewhere{0};
  std::deque<Job> jobs;
  loop.call([&] {
    for (uint64_t i = 0; i < 32; ++i) {
      jobs.push_back(read_on(loop, open.engine.generate_stream(ids_request(random_ids(i, 9), 20)),
                             [&] { elsewhere += std::this_thread::get_id() != loop.id(); }));
    }
  });
  for (uint64_t i = 0; i < 32; ++i) EXPECT_EQ(jobs[i].get(), shadow_greedy(random_ids(i, 9), 20));
  EXPECT_EQ(elsewhere, 0);
  loop.call([&] { jobs.clear(); });
}

// A reader on another thread may take a chunk and wait again before the one that brought it has come to wake it.
TEST(EngineCoroutine, AReaderThatIsAheadOfItsWakingMissesNothing) {
  OpenEngine open(ShadowEngineOptions{});
  Loop loop;
  for (uint64_t round = 0; round < 60; ++round) {
    std::deque<Job> jobs;
    loop.call([&] {
      for (uint64_t i = 0; i < 4; ++i) {
        jobs.push_back(read_on(loop, open.engine.generate_stream(ids_request(random_ids(i, 9), 60))));
      }
    });
    for (uint64_t i = 0; i < 4; ++i) EXPECT_EQ(jobs[i].get(), shadow_greedy(random_ids(i, 9), 60)) << "round " << round;
    loop.call([&] { jobs.clear(); });
  }
}

TEST(EngineCoroutine, ADestroyedOneEndsItsRequest) {
  OpenEngine open(slow_engine());
  Loop loop;
  std::optional<Job> job;
  std::promise<void> first;
  int chunks = 0;
  loop.call([&] {
    job.emplace(read_on(loop, open.engine.generate_stream(ids_request({1, 2, 3}, 5000)), [&] {
      if (++chunks == 1) first.set_value();
    }));
  });
  first.get_future().wait();
  loop.call([&] { job.reset(); });
  const int told = chunks;
  EXPECT_TRUE(becomes_idle(open.engine));
  EXPECT_EQ(open.engine.stats().at("aborted"), 1);
  loop.call([] {});  // a resumption that was under way finds nobody
  EXPECT_EQ(chunks, told);
  EXPECT_NO_THROW(open.core->check_integrity());
}

TEST(EngineCoroutine, AbortEndsTheWait) {
  OpenEngine open(slow_engine());
  Job job = read(open.engine.generate_stream(ids_request({1, 2, 3}, 5000)));
  open.engine.abort_all();
  EXPECT_LT(job.get().size(), 5000u);
}

TEST(EngineCoroutine, TheEnginesDeathIsThrown) {
  ShadowEngineOptions options;
  std::atomic<int> steps{0};
  options.model.on_forward = [&](const Batch&) {
    if (++steps == 5) TM_CHECK(steps < 0);
  };
  OpenEngine open(std::move(options));
  Job job = read(open.engine.generate_stream(ids_request({1, 2, 3}, 100)));
  EXPECT_THROW(job.get(), Error);
}

TEST(EngineCoroutine, ShutdownIsThrown) {
  OpenEngine open(slow_engine());
  Loop loop;
  Job job = read_on(loop, open.engine.generate_stream(ids_request({1, 2, 3}, 5000)));
  open.engine.shutdown();
  EXPECT_THROW(job.get(), Error);
  loop.call([] {});
}

Job read_once(Stream& stream) {
  const std::optional<Output> chunk = co_await stream.next_async();
  co_return chunk ? chunk->output_ids : std::vector<int32_t>{};
}

TEST(EngineCoroutine, OneWaitAtATime) {
  ShadowEngineOptions options;
  std::promise<void> go;
  options.model.on_forward = [future = go.get_future().share()](const Batch&) { future.wait(); };
  OpenEngine open(std::move(options));
  Stream stream = open.engine.generate_stream(ids_request({1, 2, 3}, 1));
  Job first = read_once(stream);
  Job second = read_once(stream);
  EXPECT_THROW(second.get(), Error);
  go.set_value();
  EXPECT_EQ(first.get(), shadow_greedy({1, 2, 3}, 1));
}

TEST(EngineCoroutine, WhatIsThereIsTakenWithoutWaiting) {
  OpenEngine open(ShadowEngineOptions{});
  Stream stream = open.engine.generate_stream(ids_request({1, 2, 3}, 3));
  ASSERT_TRUE(becomes_idle(open.engine));
  EXPECT_EQ(read(std::move(stream)).get(), shadow_greedy({1, 2, 3}, 3));
}

}  // namespace
}  // namespace tokenmill::testing
