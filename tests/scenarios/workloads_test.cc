// The shapes of programs through scheduler and cache: what is saved beside what could be saved at most.
#include <gtest/gtest.h>

#include "bench/program_workloads.h"

namespace tokenmill::bench {
namespace {

constexpr int32_t kVocab = 100000;

TEST(Workloads, StaticSetsSaveWhatTheBestOrderWouldInTheSamePool) {
  int checked = 0;
  for (const std::string& name : workload_names()) {
    const Workload workload = make_workload(name, 2, 1, kVocab);
    if (!workload.is_static()) continue;
    ++checked;
    for (const double share : {0.1, 0.5}) {
      const auto pool = std::max(4 * workload.largest_context(),
                                 static_cast<int64_t>(share * static_cast<double>(workload.all_tokens())));
      const CacheFigures ours = run_cache(workload, {.pool_tokens = pool});
      const CacheFigures best = best_cache(workload, pool, 32);
      std::printf("%-20s pool %7lld: %.2f %% of the prompt tokens cached, best order %.2f %%\n", name.c_str(),
                  static_cast<long long>(pool), 100 * ours.hit_rate(), 100 * best.hit_rate());
      EXPECT_EQ(ours.calls, static_cast<int64_t>(workload.calls.size()));
      EXPECT_EQ(ours.aborted, 0);
      EXPECT_EQ(best.prompt_tokens, ours.prompt_tokens);
      EXPECT_GE(ours.hit_rate(), 0.98 * best.hit_rate()) << name << " in " << pool;
    }
  }
  EXPECT_GE(checked, 8);
}

TEST(Workloads, ProgramsFindTheirOwnPast) {
  for (const char* name : {"react", "tree-of-thought", "skeleton-of-thought", "chat-short", "chat-long"}) {
    const Workload workload = make_workload(name, 1, 2, kVocab);
    EXPECT_FALSE(workload.is_static());
    const int64_t roomy = 2 * workload.all_tokens();
    const CacheFigures ours = run_cache(workload, {.pool_tokens = roomy});
    const CacheFigures best = best_cache(workload, 0, 32);
    EXPECT_EQ(ours.calls, static_cast<int64_t>(workload.calls.size()));
    EXPECT_GE(ours.hit_rate(), 0.98 * best.hit_rate()) << name;
    const CacheFigures none = run_cache(workload, {.pool_tokens = roomy, .cache = false});
    EXPECT_EQ(none.cached_tokens, 0);
    EXPECT_EQ(none.computed_tokens - ours.computed_tokens, ours.cached_tokens) << name;
  }
}

TEST(Workloads, AreSeeded) {
  for (const std::string& name : workload_names()) {
    const auto tokens = [&](uint64_t seed) { return make_workload(name, 1, seed, kVocab).calls.back().tokens; };
    EXPECT_EQ(tokens(1), tokens(1));
    EXPECT_NE(tokens(1), tokens(2));
  }
}

}  // namespace
}  // namespace tokenmill::bench
