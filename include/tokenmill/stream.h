// A pull view of one call's outputs: range-for and next(); dropping it aborts what still runs.
//
//   for (const Output& chunk : engine.generate_stream(request)) std::cout << chunk.text << std::flush;
#pragma once

#include <chrono>
#include <iterator>
#include <memory>
#include <optional>

#include "tokenmill/output.h"

namespace tokenmill {

class Stream {
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

}  // namespace tokenmill
