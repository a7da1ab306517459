// Four prompts at once, each read by a coroutine of its own, all on one thread: this one. No lock is needed.
//
//   coroutines MODEL_PATH
#include <condition_variable>
#include <coroutine>
#include <cstdio>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <string>
#include <utility>

#include "tokenmill/engine.h"

namespace {

// An event loop, as every framework has one: what is posted runs on the thread that calls run().
class Loop {
 public:
  void post(std::function<void()> work) {
    const std::lock_guard lock(mutex_);
    work_.push_back(std::move(work));
    arrived_.notify_one();
  }
  void run_while(const int& jobs) {
    while (jobs > 0) {
      std::unique_lock lock(mutex_);
      arrived_.wait(lock, [&] { return !work_.empty(); });
      const std::function<void()> work = std::move(work_.front());
      work_.pop_front();
      lock.unlock();
      work();
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<std::function<void()>> work_;
};

// A coroutine that starts at once and frees itself at its end.
struct Job {
  struct promise_type {
    Job get_return_object() { return {}; }
    std::suspend_never initial_suspend() noexcept { return {}; }
    std::suspend_never final_suspend() noexcept { return {}; }
    void return_void() {}
    void unhandled_exception() { std::terminate(); }
  };
};

Job answer(tokenmill::Engine& engine, Loop& loop, std::string prompt, int& jobs) {
  try {
    tokenmill::Stream stream = engine.generate_stream({.prompt = prompt, .sampling_params = {.temperature = 0}});
    stream.resume_on([&loop](std::function<void()> resume) { loop.post(std::move(resume)); });
    std::string text;
    int chunks = 0;
    while (const auto chunk = co_await stream.next_async()) {
      text += chunk->text;
      ++chunks;
    }
    std::printf("%s|%s\n[%d chunks]\n", prompt.c_str(), text.c_str(), chunks);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", prompt.c_str(), error.what());
  }
  --jobs;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s MODEL_PATH\n", argv[0]);
    return 2;
  }
  try {
    Loop loop;
    tokenmill::Engine engine({.model_path = argv[1], .log_level = "warning"});
    int jobs = 4;
    for (const char* prompt : {"Hello, my name is", "The president of the United States is", "The capital of France is",
                               "The future of AI is"}) {
      answer(engine, loop, prompt, jobs);
    }
    loop.run_while(jobs);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
