// A pull view of one call's outputs: range-for, next() and co_await; dropping it aborts what still runs.
//
//   for (const Output& chunk : engine.generate_stream(request)) std::cout << chunk.text << std::flush;
#pragma once

#include <chrono>
#include <coroutine>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>

#include "tokenmill/export.h"
#include "tokenmill/output.h"

namespace tokenmill {

struct StreamQueue;
struct StreamWaiter;

// Runs `resume` later, on a thread of its choice: `[&](auto resume) { asio::post(io, std::move(resume)); }`. Called on
// the engine's output thread; must not throw.
using Executor = std::function<void(std::function<void()> resume)>;

// One thread at a time reads a Stream; abort() may be called from any. A Stream outlives its Engine safely: what the
// engine had not finished then ends with an error.
class TOKENMILL_API Stream {
 public:
  class Impl;
  explicit Stream(std::unique_ptr<Impl> impl);
  Stream(Stream&&) noexcept;
  Stream& operator=(Stream&&) noexcept;
  ~Stream();  // aborts the requests that have not finished

  // The next chunk in arrival order, blocking; nullopt when every request of the call has finished.
  // Throws Error(kRuntime) when the engine died.
  std::optional<Output> next();
  // As next(), giving up after `timeout`: then nullopt while done() is false.
  std::optional<Output> next_for(std::chrono::milliseconds timeout);
  bool done() const;
  void abort();

  // `co_await stream.next_async()` is next() for coroutines: no thread waits. The coroutine goes on where resume_on()
  // says, else on the engine's output thread, where it must not block (all requests' outputs come through that thread)
  // and generate() and next() throw. One wait at a time; the Stream must outlive it. A coroutine may be destroyed while
  // it waits, by the executor's thread (one that cannot go on with it at the same moment).
  class NextAwaiter;
  NextAwaiter next_async();
  void resume_on(Executor executor);

  class Iterator {
   public:
    using value_type = Output;
    using difference_type = std::ptrdiff_t;
    Iterator() = default;
    explicit Iterator(Stream* stream) : stream_(stream) { ++*this; }
    const Output& operator*() const { return *current_; }
    const Output* operator->() const { return &*current_; }
    Iterator& operator++() {
      current_ = stream_->next();
      return *this;
    }
    void operator++(int) { ++*this; }
    bool operator==(std::default_sentinel_t) const { return !current_; }

   private:
    Stream* stream_ = nullptr;
    std::optional<Output> current_;
  };
  Iterator begin() { return Iterator(this); }
  std::default_sentinel_t end() const { return {}; }

 private:
  std::unique_ptr<Impl> impl_;
};

class TOKENMILL_API Stream::NextAwaiter {
 public:
  explicit NextAwaiter(std::shared_ptr<StreamQueue> queue);
  NextAwaiter(const NextAwaiter&) = delete;
  NextAwaiter& operator=(const NextAwaiter&) = delete;
  ~NextAwaiter();

  bool await_ready() const;
  bool await_suspend(std::coroutine_handle<> coroutine);
  std::optional<Output> await_resume();

 private:
  std::shared_ptr<StreamQueue> queue_;
  std::shared_ptr<StreamWaiter> waiter_;
};

}  // namespace tokenmill
