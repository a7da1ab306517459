// Threads that tokenise and submit, so that neither an event loop nor a thread that must hear Ctrl-C does so itself.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace tokenmill::python {

class Submitter {
 public:
  using Job = std::function<void()>;  // must not throw, nor need the GIL

  Submitter() = default;
  ~Submitter() { stop(); }
  Submitter(const Submitter&) = delete;
  Submitter& operator=(const Submitter&) = delete;

  // Starts a job as soon as a thread is free; on this thread once stop() was called.
  void add(Job job);
  // Runs what waits and joins the threads. Idempotent; call it without the GIL.
  void stop();

 private:
  void work();

  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<Job> jobs_;
  std::vector<std::thread> threads_;  // started as they are needed
  size_t idle_ = 0;
  bool stopping_ = false;
};

}  // namespace tokenmill::python
