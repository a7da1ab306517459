// A Stream's inside: the queue that the output thread fills and the caller empties.
//
// The queue has no bound of its own: it never holds more than the call's outputs.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "engine/engine_core.h"
#include "tokenmill/stream.h"

namespace tokenmill {

// Shared by the Stream and the call's callbacks, which may outlive it.
struct StreamQueue {
  std::mutex mutex;
  std::condition_variable arrived;
  std::deque<Output> outputs;
  int64_t unfinished = 0;  // samples
  bool dropped = false;    // nobody will read any more
  std::optional<Error> error;

  bool push(Output&& output);  // false: dropped
  void fail(const Error& cause);
};

class Stream::Impl {
 public:
  Impl(std::weak_ptr<EngineCore> core, std::shared_ptr<StreamQueue> queue, std::shared_ptr<const Call> call)
      : core_(std::move(core)), queue_(std::move(queue)), call_(std::move(call)) {}
  ~Impl();

  std::optional<Output> next(std::optional<std::chrono::milliseconds> timeout);
  bool done() const;
  void abort();

 private:
  std::weak_ptr<EngineCore> core_;
  std::shared_ptr<StreamQueue> queue_;
  std::shared_ptr<const Call> call_;
};

}  // namespace tokenmill
