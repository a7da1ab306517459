// A Stream's inside: the queue that the output thread fills and the caller empties.
//
// The queue has no bound of its own: it never holds more than the call's outputs.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "engine/engine_core.h"
#include "tokenmill/stream.h"

namespace tokenmill {

// A coroutine that waits. Whoever takes `coroutine` out goes on with it: the executor's turn, or nobody, once the
// coroutine was destroyed.
struct StreamWaiter {
  std::atomic<void*> coroutine{nullptr};
  void resume();
};

// Shared by the Stream and the call's callbacks, which may outlive it.
struct StreamQueue {
  std::mutex mutex;
  std::condition_variable arrived;
  std::deque<Output> outputs;
  int64_t unfinished = 0;  // samples
  bool dropped = false;    // nobody will read any more
  std::optional<Error> error;
  std::shared_ptr<StreamWaiter> waiter;
  Executor executor;  // null: the thread that pushes

  bool push(Output&& output);  // false: dropped
  void fail(const Error& cause);
  // Under the mutex.
  bool ready() const { return !outputs.empty() || unfinished == 0 || error.has_value(); }
  std::optional<Output> take();

 private:
  struct Wakeup {
    std::shared_ptr<StreamWaiter> waiter;
    Executor run;
  };
  Wakeup take_waiter();  // under the mutex
  void wake(const Wakeup& wakeup);
};

class TOKENMILL_LOCAL Stream::Impl {
 public:
  Impl(std::weak_ptr<EngineCore> core, std::shared_ptr<StreamQueue> queue, std::shared_ptr<const Call> call)
      : core_(std::move(core)), queue_(std::move(queue)), call_(std::move(call)) {}
  ~Impl();

  std::optional<Output> next(std::optional<std::chrono::milliseconds> timeout);
  bool done() const;
  void abort();
  const std::shared_ptr<StreamQueue>& queue() const { return queue_; }

 private:
  std::weak_ptr<EngineCore> core_;
  std::shared_ptr<StreamQueue> queue_;
  std::shared_ptr<const Call> call_;
};

}  // namespace tokenmill
