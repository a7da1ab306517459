// The shapes of language-model programs as seeded synthetic token ids, and what a prefix cache makes of them.
//
// A workload is a forest of calls: a call's prompt is its parent's prompt and output, then its own tokens, and it is
// submitted when its parent has finished. A static set has roots only.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "sched/policy.h"

namespace tokenmill::bench {

struct ProgramCall {
  int32_t parent = -1;
  std::vector<int32_t> tokens;
  int64_t new_tokens = 0;
};

struct Workload {
  std::string name;
  std::vector<ProgramCall> calls;  // parents before their children
  bool is_static() const;
  int64_t largest_context() const;  // prompt and output tokens of the longest call
  int64_t all_tokens() const;       // prompts and outputs of all calls, shared or not
};

// few-shot, hellaswag, react, generative-agents, tree-of-thought, skeleton-of-thought, judge, json, chat-short,
// chat-long, rag, random, sharegpt.
std::vector<std::string> workload_names();
// Throws std::invalid_argument for an unknown name. scale 1: some tens to hundreds of calls.
Workload make_workload(std::string_view name, double scale, uint64_t seed, int32_t vocab_size);

// The same scheduler and cache that the engine has, over a device that makes tokens up.
struct CacheRun {
  SchedulePolicy policy = SchedulePolicy::kLpm;
  int64_t pool_tokens = 0;
  int32_t page_size = 32;
  int64_t max_running = 256;
  int64_t chunked_prefill_size = 512;
  bool cache = true;
  bool depth_first = false;  // submit the prompts of a static set in their own depth-first order
};
struct CacheFigures {
  int64_t calls = 0, aborted = 0, prompt_tokens = 0, cached_tokens = 0, computed_tokens = 0, steps = 0;
  int64_t evicted_blocks = 0, retractions = 0;
  double host_us = 0;  // of all steps
  double hit_rate() const;
};
CacheFigures run_cache(const Workload& workload, const CacheRun& how);

// The most any order could save in this pool: for a static set, depth first and one at a time (arXiv 2312.07104,
// theorem 3.1: optimal where the pool holds the longest request); pool 0: nothing is ever evicted.
CacheFigures best_cache(const Workload& workload, int64_t pool_tokens, int32_t page_size);

}  // namespace tokenmill::bench
