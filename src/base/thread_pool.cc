#include "base/thread_pool.h"

#include <immintrin.h>

#include <atomic>
#include <chrono>
#include <system_error>
#include <thread>
#include <vector>

#include "base/check.h"
#include "tokenmill/error.h"

namespace tokenmill {
namespace {

constexpr int kRemainingBits = 24;
constexpr uint64_t kRemainingMask = (uint64_t{1} << kRemainingBits) - 1;
constexpr auto kSpin = std::chrono::microseconds(50);

// True as soon as ready() is; false when it was not for about 50 us.
template <class Ready>
bool spin_until(Ready ready) {
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      _mm_pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return ready();
}

}  // namespace

// A job is published by storing a new ticket = epoch << 24 | pieces not yet claimed.
//
// A worker loads the ticket, then the job's fields, then claims by a compare-and-swap of that very ticket. Where the
// swap succeeds the piece was unclaimed all along, so the job cannot have ended between and the fields belong to it. A
// worker that comes late sees no pieces left and touches nothing; the caller never waits for it.
struct ThreadPool::Impl {
  alignas(64) std::atomic<uint64_t> ticket{0};
  std::atomic<Call> call{nullptr};
  std::atomic<void*> body{nullptr};
  std::atomic<int64_t> num_pieces{0};
  alignas(64) std::atomic<int32_t> done{0};        // pieces of the current job that have ended
  alignas(64) std::atomic<uint32_t> published{0};  // jobs so far; workers sleep on it
  std::atomic<bool> stop{false};
  void (*init)() = nullptr;
  std::vector<std::thread> threads;

  void work(int worker) {
    uint64_t current = ticket.load(std::memory_order_acquire);
    while ((current & kRemainingMask) != 0) {
      const Call job_call = call.load(std::memory_order_relaxed);
      void* const job_body = body.load(std::memory_order_relaxed);
      const int64_t pieces = num_pieces.load(std::memory_order_relaxed);
      if (!ticket.compare_exchange_weak(current, current - 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
        continue;
      }
      job_call(job_body, pieces - static_cast<int64_t>(current & kRemainingMask), worker);
      if (done.fetch_add(1, std::memory_order_acq_rel) + 1 == pieces) done.notify_one();
      current = ticket.load(std::memory_order_acquire);
    }
  }

  void loop(int worker) {
    if (init != nullptr) init();
    while (true) {
      const uint32_t seen = published.load(std::memory_order_acquire);
      if (stop.load(std::memory_order_acquire)) return;
      work(worker);
      const auto is_new = [&] { return published.load(std::memory_order_acquire) != seen; };
      if (!spin_until(is_new)) published.wait(seen, std::memory_order_acquire);
    }
  }

  void publish() {
    published.fetch_add(1, std::memory_order_release);
    published.notify_all();
  }

  void stop_all() {
    stop.store(true, std::memory_order_release);
    publish();
    for (std::thread& thread : threads) thread.join();
    threads.clear();
  }
};

ThreadPool::ThreadPool(int num_threads, void (*init)()) : impl_(std::make_unique<Impl>()) {
  TM_CHECK(num_threads >= 1);
  impl_->init = init;
  impl_->threads.reserve(static_cast<size_t>(num_threads - 1));
  try {
    for (int worker = 1; worker < num_threads; ++worker) {
      impl_->threads.emplace_back([impl = impl_.get(), worker] { impl->loop(worker); });
    }
  } catch (const std::system_error& error) {
    const size_t started = impl_->threads.size() + 1;
    impl_->stop_all();
    throw Error(ErrorKind::kRuntime, "cannot start " + std::to_string(num_threads) + " threads (" +
                                         std::to_string(started) + " could be): " + error.what() +
                                         ". Set a smaller num_threads or raise the limit (ulimit -u).");
  }
}

ThreadPool::~ThreadPool() { impl_->stop_all(); }

int ThreadPool::num_threads() const { return static_cast<int>(impl_->threads.size()) + 1; }

void ThreadPool::run(int64_t num_pieces, Call call, void* body) {
  TM_CHECK(num_pieces >= 0 && num_pieces <= static_cast<int64_t>(kRemainingMask));
  const unsigned callers_mxcsr = _mm_getcsr();
  if (impl_->init != nullptr) impl_->init();
  if (num_pieces <= 1 || impl_->threads.empty()) {
    for (int64_t piece = 0; piece < num_pieces; ++piece) call(body, piece, 0);
    _mm_setcsr(callers_mxcsr);
    return;
  }
  Impl& impl = *impl_;
  const int32_t pieces = static_cast<int32_t>(num_pieces);
  impl.call.store(call, std::memory_order_relaxed);
  impl.body.store(body, std::memory_order_relaxed);
  impl.num_pieces.store(num_pieces, std::memory_order_relaxed);
  impl.done.store(0, std::memory_order_relaxed);
  const uint64_t epoch = (impl.ticket.load(std::memory_order_relaxed) >> kRemainingBits) + 1;
  impl.ticket.store(epoch << kRemainingBits | static_cast<uint64_t>(num_pieces), std::memory_order_release);
  impl.publish();
  impl.work(0);
  const auto all_done = [&] { return impl.done.load(std::memory_order_acquire) == pieces; };
  if (!spin_until(all_done)) {
    for (int32_t seen = impl.done.load(std::memory_order_acquire); seen != pieces;
         seen = impl.done.load(std::memory_order_acquire)) {
      impl.done.wait(seen, std::memory_order_acquire);
    }
  }
  _mm_setcsr(callers_mxcsr);
}

}  // namespace tokenmill
