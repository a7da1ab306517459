#include "submitter.h"

#include <algorithm>
#include <utility>

namespace tokenmill::python {
namespace {

constexpr size_t kThreadsMax = 4;

size_t threads_max() { return std::clamp<size_t>(std::thread::hardware_concurrency(), 1, kThreadsMax); }

}  // namespace

void Submitter::add(Job job) {
  {
    std::unique_lock lock(mutex_);
    if (stopping_) {
      lock.unlock();
      job();
      return;
    }
    if (jobs_.size() >= idle_ && threads_.size() < threads_max()) threads_.emplace_back([this] { work(); });
    jobs_.push_back(std::move(job));
  }
  arrived_.notify_one();
}

void Submitter::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    ++idle_;
    arrived_.wait(lock, [&] { return stopping_ || !jobs_.empty(); });
    --idle_;
    if (jobs_.empty()) return;
    {
      const Job job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      job();
    }
    lock.lock();
  }
}

void Submitter::stop() {
  std::vector<std::thread> threads;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    threads.swap(threads_);
  }
  arrived_.notify_all();
  for (std::thread& thread : threads) thread.join();
}

}  // namespace tokenmill::python
