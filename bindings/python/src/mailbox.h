// Where an engine's output thread leaves outputs for Python to fetch. No Python in here: the output thread never takes
// the GIL, so a busy interpreter cannot slow the engine down, and one that ends cannot trip it.
//
// One mailbox serves any number of calls: a synchronous call has its own and waits on it; all calls of one event loop
// share one, whose file descriptor the loop watches.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "tokenmill/engine.h"

namespace tokenmill::python {

// One output of a call, the error that ended the call, or neither: the call was taken.
struct Mail {
  int64_t call = 0;                                // the number that the call was submitted under
  bool with_index = false, with_logprobs = false;  // what the output's dict is to have
  std::optional<Output> output;
  std::optional<Error> error;

  static Mail taken(int64_t call) { return {call, false, false, std::nullopt, std::nullopt}; }
  // With a message of its own: copies of an Error share theirs, and the threads would share it too.
  static Mail failed(int64_t call, const Error& error) {
    return {call, false, false, std::nullopt, Error(error.kind(), std::string(error.what()))};
  }
};

class Mailbox {
 public:
  // watched: has a file descriptor (eventfd) that is readable while mail waits. Throws Error(kRuntime) without one.
  explicit Mailbox(bool watched);
  ~Mailbox();
  Mailbox(const Mailbox&) = delete;
  Mailbox& operator=(const Mailbox&) = delete;

  void put(Mail mail);
  // All that waits, in order of arrival; resets the file descriptor.
  std::vector<Mail> take();
  // Until `count` pieces or an error wait, or the time is over. True: they do.
  bool wait(size_t count, std::chrono::milliseconds timeout);
  size_t size() const;
  int fd() const { return fd_; }  // -1: not watched

 private:
  bool ready(size_t count) const { return mail_.size() >= count || failed_; }

  mutable std::mutex mutex_;
  std::condition_variable arrived_;
  std::vector<Mail> mail_;
  size_t wanted_ = 1;  // what the waiting thread waits for
  bool failed_ = false;
  int fd_ = -1;
};

}  // namespace tokenmill::python
