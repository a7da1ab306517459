#include "base/thread_pool.h"

#include <gtest/gtest.h>
#include <immintrin.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <thread>
#include <vector>

namespace tokenmill {
namespace {

void set_flush_to_zero() { _mm_setcsr(0x9fc0); }

TEST(ThreadPool, RunsEveryPieceOnce) {
  for (int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads, nullptr);
    EXPECT_EQ(pool.num_threads(), threads);
    for (int64_t pieces : {0, 1, 2, 3, 7, 64, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(pieces));
      std::atomic<bool> worker_in_range{true};
      pool.parallel_for(pieces, [&](int64_t piece, int worker) {
        runs[static_cast<size_t>(piece)].fetch_add(1);
        if (worker < 0 || worker >= threads) worker_in_range = false;
      });
      EXPECT_TRUE(worker_in_range);
      for (const auto& count : runs) EXPECT_EQ(count.load(), 1);
    }
  }
}

// What a piece wrote is seen after parallel_for, also with thousands of jobs in a row, where late workers of one job
// meet the next.
TEST(ThreadPool, ManyJobsInARow) {
  ThreadPool pool(3, nullptr);
  std::vector<int64_t> values(17);
  for (int64_t job = 0; job < 20000; ++job) {
    const int64_t pieces = 1 + job % 17;
    pool.parallel_for(pieces, [&](int64_t piece, int) { values[static_cast<size_t>(piece)] = job + piece; });
    for (int64_t piece = 0; piece < pieces; ++piece) ASSERT_EQ(values[static_cast<size_t>(piece)], job + piece);
  }
}

TEST(ThreadPool, WakesAfterSleep) {
  ThreadPool pool(2, nullptr);
  for (int job = 0; job < 5; ++job) {
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    std::atomic<int> both{0};
    // Each piece waits until the other has begun, so the job ends only if the sleeping worker wakes.
    pool.parallel_for(2, [&](int64_t, int) {
      both.fetch_add(1);
      while (both.load() < 2) std::this_thread::yield();
    });
    EXPECT_EQ(both.load(), 2);
  }
}

TEST(ThreadPool, FloatModeInEveryWorkerAndCallersRestored) {
  const unsigned before = _mm_getcsr();
  for (int threads : {1, 2}) {
    ThreadPool pool(threads, &set_flush_to_zero);
    EXPECT_EQ(_mm_getcsr(), before);
    for (int64_t pieces : {1, 2, 100}) {
      std::atomic<int> with_denormals{0};
      pool.parallel_for(pieces, [&](int64_t, int) {
        if ((_mm_getcsr() & 0x8040u) != 0x8040u) with_denormals.fetch_add(1);
      });
      EXPECT_EQ(with_denormals.load(), 0);
      EXPECT_EQ(_mm_getcsr(), before);
    }
  }
}

TEST(ThreadPool, MovesToAnotherCallingThread) {
  ThreadPool pool(2, nullptr);
  for (int round = 0; round < 3; ++round) {
    std::thread caller([&] {
      std::atomic<int> runs{0};
      pool.parallel_for(50, [&](int64_t, int) { runs.fetch_add(1); });
      EXPECT_EQ(runs.load(), 50);
    });
    caller.join();
  }
}

}  // namespace
}  // namespace tokenmill
