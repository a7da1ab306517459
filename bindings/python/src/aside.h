// Work on a thread of its own while the Python thread that wants its result listens for Ctrl-C. What cannot be stopped
// half way (one prompt of many megabytes in the tokenizer) is left behind then: it ends by itself, and its result is
// dropped.
#pragma once

#include <nanobind/nanobind.h>

#include <atomic>
#include <chrono>
#include <future>
#include <iterator>
#include <list>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>

namespace tokenmill::python {

class Aside {
 public:
  Aside() = default;
  ~Aside() { join(); }
  Aside(const Aside&) = delete;
  Aside& operator=(const Aside&) = delete;

  // With the GIL, which `work` neither has nor needs; `work` owns all it uses. On Ctrl-C calls on_interrupt without the
  // GIL and raises.
  template <class Work, class OnInterrupt>
  auto run(Work work, OnInterrupt on_interrupt) {
    using Result = std::invoke_result_t<Work&>;
    auto done = std::make_shared<std::atomic<bool>>(false);
    std::packaged_task<Result()> task([work = std::move(work)]() mutable { return work(); });
    std::future<Result> result = task.get_future();
    std::thread thread([task = std::move(task), done]() mutable {
      task();
      *done = true;
    });
    bool ready = false;
    while (!ready) {
      {
        const nanobind::gil_scoped_release release;
        ready = result.wait_for(kLook) == std::future_status::ready;
      }
      if (!ready && PyErr_CheckSignals() != 0) {
        {
          const nanobind::gil_scoped_release release;
          on_interrupt();
          leave(std::move(thread), std::move(done));
        }
        throw nanobind::python_error();
      }
    }
    const nanobind::gil_scoped_release release;
    thread.join();
    return result.get();
  }

  // Waits for what was left behind; without the GIL.
  void join() {
    std::list<Left> left;
    {
      const std::lock_guard lock(mutex_);
      left.swap(left_);
    }
    for (Left& one : left) one.thread.join();
  }

 private:
  struct Left {
    std::thread thread;
    std::shared_ptr<std::atomic<bool>> done;
  };
  static constexpr std::chrono::milliseconds kLook{50};

  void leave(std::thread thread, std::shared_ptr<std::atomic<bool>> ended) {
    const std::lock_guard lock(mutex_);
    for (auto one = left_.begin(); one != left_.end();) {
      const bool done = *one->done;
      if (done) one->thread.join();
      one = done ? left_.erase(one) : std::next(one);
    }
    left_.push_back({std::move(thread), std::move(ended)});
  }

  std::mutex mutex_;
  std::list<Left> left_;
};

}  // namespace tokenmill::python
