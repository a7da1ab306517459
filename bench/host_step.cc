// What a step costs the host: schedule + commit + take_events with a null model (the tokens are made up), by batch
// size, queue length and tree size.
//
//   host_step [--csv] [--policy lpm] [--only TEXT]     (tools/plot_host_step.py draws the csv)
//
// Median of the steps, in microseconds; the queue shares nothing, shares one prefix, or the tree is full of other
// things.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "sched/scheduler.h"

namespace tokenmill {
namespace {

using Clock = std::chrono::steady_clock;

struct Case {
  int64_t batch = 1, waiting = 0, tree_tokens = 0, steps = 400;
  int64_t shared = 0;     // tokens that all prompts begin with
  bool turnover = false;  // short outputs: sequences end and start in nearly every step
};

struct Figures {
  double median_us = 0, p99_us = 0, mean_us = 0;
  double add_us = 0;  // a waiting prompt, once
  double starts = 0;  // sequences a step; as many end
};

double microseconds_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
}

class NullWorld {
 public:
  explicit NullWorld(const Case& what, SchedulePolicy policy) : case_(what), scheduler_(options(what, policy)) {}

  Figures run() {
    fill_tree();
    scheduler_.add(prompts(case_.batch));
    while (scheduler_.stats().queue > 0) step();  // all in the batch
    for (int i = 0; i < 3; ++i) step();
    Figures figures;
    const auto begin = Clock::now();
    for (int64_t left = case_.waiting; left > 0; left -= 4096) scheduler_.add(prompts(std::min<int64_t>(left, 4096)));
    if (case_.waiting > 0) figures.add_us = microseconds_since(begin) / static_cast<double>(case_.waiting);
    std::vector<double> times;
    int64_t started = 0;
    for (int64_t i = 0; i < case_.steps; ++i) {
      times.push_back(step());
      if (!case_.turnover) continue;
      // Not timed: as many come as have started, so that as many wait in every step.
      const int64_t missing = case_.waiting - scheduler_.stats().queue;
      started += missing;
      if (missing > 0) scheduler_.add(prompts(missing));
    }
    figures.starts = static_cast<double>(started) / static_cast<double>(case_.steps);
    std::sort(times.begin(), times.end());
    figures.median_us = times[times.size() / 2];
    figures.p99_us = times[times.size() * 99 / 100];
    for (const double time : times) figures.mean_us += time / static_cast<double>(times.size());
    return figures;
  }

 private:
  static SchedulerOptions options(const Case& what, SchedulePolicy policy) {
    SchedulerOptions options;
    options.page_size = 32;
    options.num_blocks = static_cast<int32_t>((what.tree_tokens + what.batch * 2048 + 65536) / 32);
    options.context_length = 1 << 20;
    options.max_running_requests = what.batch;
    options.chunked_prefill_size = 1 << 20;
    options.max_prefill_tokens = 1 << 20;
    options.policy = policy;
    return options;
  }

  std::vector<SequenceSpec> prompts(int64_t count) {
    std::vector<SequenceSpec> unit;
    for (int64_t i = 0; i < count; ++i) {
      SequenceSpec spec;
      spec.id = ++last_id_;
      std::vector<int32_t> ids(static_cast<size_t>(128 + case_.shared));
      for (int64_t t = 0; t < case_.shared; ++t) ids[static_cast<size_t>(t)] = static_cast<int32_t>(t);
      for (size_t t = static_cast<size_t>(case_.shared); t < ids.size(); ++t) ids[t] = draw();
      spec.prompt = std::make_shared<const std::vector<int32_t>>(std::move(ids));
      // Spread, so that with turnover about one sequence in 8 ends a step.
      spec.max_new_tokens = case_.turnover ? 4 + static_cast<int64_t>(spec.id % 9) : 1500;
      unit.push_back(std::move(spec));
    }
    return unit;
  }

  // Finished sequences of 256 tokens each until the tree holds what is asked.
  void fill_tree() {
    const auto wanted = case_.tree_tokens / 32;
    while (scheduler_.stats().blocks_cached < wanted) {
      std::vector<SequenceSpec> unit(std::min<size_t>(64, static_cast<size_t>(case_.batch)));
      for (SequenceSpec& spec : unit) {
        spec.id = ++last_id_;
        std::vector<int32_t> ids(256);
        for (int32_t& id : ids) id = draw();
        spec.prompt = std::make_shared<const std::vector<int32_t>>(std::move(ids));
        spec.max_new_tokens = 1;
      }
      scheduler_.add(std::move(unit));
      while (scheduler_.has_work()) step();
    }
  }

  int32_t draw() {
    random_ = random_ * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<int32_t>(random_ >> 40);
  }

  double step() {
    const auto begin = Clock::now();
    const Batch* batch = scheduler_.schedule();
    double spent = microseconds_since(begin);
    if (batch == nullptr) return spent;
    result_.step = batch->step;
    result_.sampled.assign(batch->sampling.size(), SampledToken{});
    for (SampledToken& sampled : result_.sampled) sampled.token = draw() & 0xffff;
    const auto again = Clock::now();
    scheduler_.commit(result_);
    const std::vector<SequenceEvent> events = scheduler_.take_events();
    return spent + microseconds_since(again);
  }

  Case case_;
  Scheduler scheduler_;
  StepResult result_;
  uint64_t last_id_ = 0, random_ = 1;
};

const char* only = "";  // cases with this in their name

void report(const char* name, int64_t value, const Case& what, SchedulePolicy policy, bool csv) {
  if (!std::strstr(name, only)) return;
  const Figures figures = NullWorld(what, policy).run();
  std::printf(csv ? "%s,%lld,%.2f,%.2f,%.2f,%.3f,%.1f\n" : "%-34s %9lld %9.2f %9.2f %9.2f %9.3f %7.1f\n", name,
              static_cast<long long>(value), figures.median_us, figures.p99_us, figures.mean_us, figures.add_us,
              figures.starts);
  std::fflush(stdout);
}

int run(int argc, char** argv) {
  bool csv = false;
  SchedulePolicy policy = SchedulePolicy::kLpm;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--csv") == 0) {
      csv = true;
    } else if (std::strcmp(argv[i], "--policy") == 0 && i + 1 < argc && find_policy(argv[i + 1])) {
      policy = *find_policy(argv[++i]);
    } else if (std::strcmp(argv[i], "--only") == 0 && i + 1 < argc) {
      only = argv[++i];
    } else {
      std::fprintf(stderr,
                   "usage: host_step [--csv] [--only TEXT] [--policy lpm|fcfs|dfs-weight|lof|random|priority]\n");
      return 2;
    }
  }
  std::printf(csv ? "%s,%s,%s,%s,%s,%s,%s\n" : "%-34s %9s %9s %9s %9s %9s %7s\n", "case", "value", "median us",
              "p99 us", "mean us", "add us", "starts");
  for (const int64_t batch : {1, 8, 64, 256}) report("batch", batch, {.batch = batch}, policy, csv);
  for (const int64_t waiting : {0, 100, 1000, 10000, 100000}) {
    report("waiting, batch 256", waiting, {.batch = 256, .waiting = waiting}, policy, csv);
  }
  for (const int64_t waiting : {0, 1000, 100000}) {
    report("waiting, batch 1", waiting, {.batch = 1, .waiting = waiting}, policy, csv);
  }
  for (const int64_t tokens : {0, 10000, 100000, 1000000}) {
    report("tree tokens, batch 256", tokens, {.batch = 256, .tree_tokens = tokens}, policy, csv);
  }
  for (const int64_t waiting : {1000, 10000, 100000}) {
    report("turnover, batch 256, waiting", waiting, {.batch = 256, .waiting = waiting, .steps = 1000, .turnover = true},
           policy, csv);
    // 3 tokens more than whole blocks: what waits shares rows of a block with all that is cached, too.
    for (const int64_t shared : {256, 259}) {
      report(shared == 256 ? "turnover, 256 tokens shared" : "turnover, 259 tokens shared", waiting,
             {.batch = 256, .waiting = waiting, .steps = 1000, .shared = shared, .turnover = true}, policy, csv);
    }
  }
  for (const int64_t tokens : {10000, 1000000}) {
    report("turnover, 10000 waiting, tree", tokens,
           {.batch = 256, .waiting = 10000, .tree_tokens = tokens, .steps = 1000, .turnover = true}, policy, csv);
  }
  return 0;
}

}  // namespace
}  // namespace tokenmill

int main(int argc, char** argv) { return tokenmill::run(argc, argv); }
