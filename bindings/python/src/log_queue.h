// Log lines on their way to Python's logging: the engine's threads put them, one Python thread takes them.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "tokenmill/log.h"

namespace tokenmill::python {

class LogQueue {
 public:
  using Lines = std::vector<std::pair<LogLevel, std::string>>;
  static constexpr size_t kLinesMax = 65536;  // beyond that the oldest are dropped

  void put(LogLevel level, std::string line) {
    {
      const std::lock_guard lock(mutex_);
      if (lines_.size() >= kLinesMax) lines_.erase(lines_.begin(), lines_.begin() + kLinesMax / 2);
      lines_.emplace_back(level, std::move(line));
    }
    arrived_.notify_one();
  }
  Lines take() {
    const std::lock_guard lock(mutex_);
    return std::exchange(lines_, {});
  }
  // Until a line waits, the queue is closed or the time is over. False: closed.
  bool wait(std::chrono::milliseconds timeout) {
    std::unique_lock lock(mutex_);
    arrived_.wait_for(lock, timeout, [&] { return !lines_.empty() || closed_; });
    return !closed_;
  }
  void close() {
    {
      const std::lock_guard lock(mutex_);
      closed_ = true;
    }
    arrived_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  Lines lines_;
  bool closed_ = false;
};

}  // namespace tokenmill::python
