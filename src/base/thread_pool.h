// Workers that claim pieces of one job at a time. The calling thread is worker 0.
//
// Pieces are claimed from a shared counter, never handed out beforehand, so a slow or busy core costs its share and no
// more; a job ends when its pieces are done, also while some worker has not woken up for it. Idle workers spin about
// 50 us, then sleep.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>

namespace tokenmill {

class ThreadPool {
 public:
  // num_threads counts the caller, >= 1. init runs once in every worker, e.g. to set MXCSR; in the caller it runs at
  // the start of every parallel_for, whose end restores the caller's MXCSR: the caller is the user's thread.
  ThreadPool(int num_threads, void (*init)());
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const;

  // Runs body(piece, worker) for every piece in [0, num_pieces), worker in [0, num_threads); returns when all are done.
  // One caller at a time. body must not throw and must not call parallel_for.
  template <class Body>
  void parallel_for(int64_t num_pieces, Body&& body) {
    run(
        num_pieces,
        [](void* b, int64_t piece, int worker) { (*static_cast<std::remove_reference_t<Body>*>(b))(piece, worker); },
        const_cast<void*>(static_cast<const void*>(std::addressof(body))));
  }

 private:
  using Call = void (*)(void* body, int64_t piece, int worker);
  void run(int64_t num_pieces, Call call, void* body);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tokenmill
