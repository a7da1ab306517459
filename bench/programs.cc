// The workloads of program_workloads.h, cached and uncached.
//
//   programs [--workload NAME]... [--scale 1] [--seed 1] [--pool-share 0.5] [--policy lpm] [--json]
//   programs --model PATH [--rate CALLS_PER_SECOND] ...      with a real model, too: throughput and time to first token
//
// Without a model: scheduler and cache alone, over a device that makes tokens up. The pool holds --pool-share of all
// tokens of all calls (and four of the longest at least). "best" is the depth-first order in the same pool for static
// sets, one call at a time in a pool without eviction for the others.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <future>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <thread>

#include "bench/program_workloads.h"
#include "tokenmill/engine.h"

namespace tokenmill::bench {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::vector<std::string> workloads;
  std::string model, policy = "lpm";
  double scale = 1, pool_share = 0.5, rate = 0;
  uint64_t seed = 1;
  bool json = false;
};

struct EngineFigures {
  double seconds = 0, tokens_per_s = 0, first_token_p50_s = 0, first_token_p99_s = 0;
};

// Roots arrive as one list, or one by one as a Poisson stream; a child follows when its parent has finished.
class EngineRun {
 public:
  EngineRun(Engine& engine, const Workload& workload, double rate, uint64_t seed)
      : engine_(engine),
        workload_(workload),
        rate_(rate),
        random_(seed),
        contexts_(workload.calls.size()),
        left_(static_cast<int64_t>(workload.calls.size())) {}

  EngineFigures run() {
    engine_.flush_cache();
    const std::map<std::string, double> before = engine_.stats();
    const auto start = Clock::now();
    std::vector<Request> list;
    std::vector<int32_t> roots;
    for (size_t i = 0; i < workload_.calls.size(); ++i) {
      if (workload_.calls[i].parent < 0) roots.push_back(static_cast<int32_t>(i));
    }
    if (rate_ > 0) {
      auto next = start;
      for (const int32_t root : roots) {
        std::this_thread::sleep_until(next);
        submit(root);
        const double u = (static_cast<double>(random_() >> 11) + 0.5) * 0x1p-53;
        next += std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(-std::log(u) / rate_));
      }
    } else {
      for (const int32_t root : roots) list.push_back(request(root));
      engine_.submit(std::move(list), [this, roots](Output&& output) {
        return finished(roots[static_cast<size_t>(output.index)], output);
      });
    }
    done_.get_future().wait();
    EngineFigures figures;
    figures.seconds = std::chrono::duration<double>(Clock::now() - start).count();
    engine_.flush_cache();
    const std::map<std::string, double> after = engine_.stats();
    figures.tokens_per_s = (after.at("prompt_tokens") + after.at("generated_tokens") - before.at("prompt_tokens") -
                            before.at("generated_tokens")) /
                           figures.seconds;
    figures.first_token_p50_s = quantile(0.5);
    figures.first_token_p99_s = quantile(0.99);
    return figures;
  }

 private:
  Request request(int32_t call) {
    const ProgramCall& what = workload_.calls[static_cast<size_t>(call)];
    Request request;
    request.input_ids = what.parent < 0 ? std::vector<int32_t>() : contexts_[static_cast<size_t>(what.parent)];
    request.input_ids->insert(request.input_ids->end(), what.tokens.begin(), what.tokens.end());
    contexts_[static_cast<size_t>(call)] = *request.input_ids;
    request.sampling_params.max_new_tokens = what.new_tokens;
    request.sampling_params.ignore_eos = true;
    request.sampling_params.temperature = 0;
    request.sampling_params.stream_interval = 1 << 20;  // the first token, and all
    request.stream = true;
    return request;
  }
  void submit(int32_t call) {
    engine_.submit(request(call), [this, call](Output&& output) { return finished(call, output); });
  }
  // On the output thread, which alone touches contexts of finished calls.
  bool finished(int32_t call, const Output& output) {
    auto& context = contexts_[static_cast<size_t>(call)];
    context.insert(context.end(), output.output_ids.begin(), output.output_ids.end());
    if (output.meta_info.completion_tokens == 1) first_token_.push_back(output.meta_info.e2e_latency);
    if (!output.finished()) return true;
    for (size_t i = static_cast<size_t>(call) + 1; i < workload_.calls.size(); ++i) {
      if (workload_.calls[i].parent == call) submit(static_cast<int32_t>(i));
    }
    if (--left_ == 0) done_.set_value();
    return true;
  }
  double quantile(double q) {
    if (first_token_.empty()) return 0;
    std::sort(first_token_.begin(), first_token_.end());
    return first_token_[static_cast<size_t>(q * static_cast<double>(first_token_.size() - 1))];
  }

  Engine& engine_;
  const Workload& workload_;
  double rate_;
  std::mt19937_64 random_;
  std::vector<std::vector<int32_t>> contexts_;
  std::vector<double> first_token_;
  int64_t left_;
  std::promise<void> done_;
};

long long ll(int64_t value) { return value; }

void report(const Options& options, const std::string& name, Engine* cached, Engine* uncached) {
  const int32_t vocab = cached ? static_cast<int32_t>(cached->vocab_size()) : 100000;
  const Workload workload = make_workload(name, options.scale, options.seed, vocab);
  const auto pool = std::max(4 * workload.largest_context(),
                             static_cast<int64_t>(options.pool_share * static_cast<double>(workload.all_tokens())));
  CacheRun how{.policy = find_policy(options.policy).value(), .pool_tokens = pool};
  const CacheFigures ours = run_cache(workload, how);
  how.cache = false;
  const CacheFigures none = run_cache(workload, how);
  const CacheFigures best = best_cache(workload, workload.is_static() ? pool : 0, 32);
  const CacheFigures infinite = best_cache(workload, 0, 32);
  const double share = best.hit_rate() == 0 ? 100 : 100 * ours.hit_rate() / best.hit_rate();
  EngineFigures with, without;
  if (cached) {
    with = EngineRun(*cached, workload, options.rate, options.seed).run();
    without = EngineRun(*uncached, workload, options.rate, options.seed).run();
  }
  if (options.json) {
    std::printf(
        R"({"workload":"%s","calls":%lld,"static":%s,"prompt_tokens":%lld,"hit_rate":%.4f,"best_hit_rate":%.4f,)"
        R"("infinite_hit_rate":%.4f,"computed_tokens":%lld,"computed_tokens_uncached":%lld,"evicted_blocks":%lld,)"
        R"("host_us_per_call":%.2f,"cached":{"tokens_per_s":%.1f,"first_token_p50_s":%.4f,"first_token_p99_s":)"
        R"(%.4f},"uncached":{"tokens_per_s":%.1f,"first_token_p50_s":%.4f,"first_token_p99_s":%.4f}})"
        "\n",
        name.c_str(), ll(ours.calls), workload.is_static() ? "true" : "false", ll(ours.prompt_tokens), ours.hit_rate(),
        best.hit_rate(), infinite.hit_rate(), ll(ours.computed_tokens), ll(none.computed_tokens),
        ll(ours.evicted_blocks), ours.host_us / static_cast<double>(std::max<int64_t>(1, ours.calls)),
        with.tokens_per_s, with.first_token_p50_s, with.first_token_p99_s, without.tokens_per_s,
        without.first_token_p50_s, without.first_token_p99_s);
    return;
  }
  std::printf("%-20s %6lld %8lld %7.2f %7.2f %7.2f %7.1f %9lld %9lld %7lld %8.1f", name.c_str(), ll(ours.calls),
              ll(ours.prompt_tokens), 100 * ours.hit_rate(), 100 * best.hit_rate(), 100 * infinite.hit_rate(), share,
              ll(ours.computed_tokens), ll(none.computed_tokens), ll(ours.evicted_blocks),
              ours.host_us / static_cast<double>(std::max<int64_t>(1, ours.calls)));
  if (cached) {
    std::printf(" %9.0f %9.0f %8.0f %8.0f", with.tokens_per_s, without.tokens_per_s, 1e3 * with.first_token_p50_s,
                1e3 * without.first_token_p50_s);
  }
  std::printf("\n");
  std::fflush(stdout);
}

int usage() {
  std::fprintf(stderr,
               "usage: programs [--workload NAME]... [--scale N] [--seed N] [--pool-share N] [--policy NAME] [--json]\n"
               "                [--model PATH [--rate CALLS_PER_SECOND]]\nworkloads:");
  for (const std::string& name : workload_names()) std::fprintf(stderr, " %s", name.c_str());
  std::fprintf(stderr, "\n");
  return 2;
}

std::unique_ptr<Engine> open(const Options& options, bool disable_cache) {
  ServerArgs args;
  args.model_path = options.model;
  args.skip_tokenizer_init = true;
  args.log_level = "error";
  args.random_seed = 1;
  args.schedule_policy = options.policy;
  args.disable_radix_cache = disable_cache;
  return std::make_unique<Engine>(args);
}

int run(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--json") {
      options.json = true;
      continue;
    }
    if (i + 1 >= argc) return usage();
    const char* value = argv[++i];
    if (flag == "--workload") {
      options.workloads.push_back(value);
    } else if (flag == "--scale") {
      options.scale = std::atof(value);
    } else if (flag == "--seed") {
      options.seed = std::strtoull(value, nullptr, 10);
    } else if (flag == "--pool-share") {
      options.pool_share = std::atof(value);
    } else if (flag == "--policy" && find_policy(value)) {
      options.policy = value;
    } else if (flag == "--model") {
      options.model = value;
    } else if (flag == "--rate") {
      options.rate = std::atof(value);
    } else {
      return usage();
    }
  }
  if (options.workloads.empty()) options.workloads = workload_names();
  std::unique_ptr<Engine> cached, uncached;
  if (!options.model.empty()) {
    cached = open(options, false);
    uncached = open(options, true);
  }
  if (!options.json) {
    std::printf("%-20s %6s %8s %7s %7s %7s %7s %9s %9s %7s %8s", "workload", "calls", "prompt", "hit %", "best %",
                "inf. %", "of best", "computed", "uncached", "evicted", "us/call");
    if (cached) std::printf(" %9s %9s %8s %8s", "tok/s", "uncached", "ttft ms", "uncached");
    std::printf("\n");
  }
  for (const std::string& name : options.workloads) report(options, name, cached.get(), uncached.get());
  return 0;
}

}  // namespace
}  // namespace tokenmill::bench

int main(int argc, char** argv) {
  try {
    return tokenmill::bench::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "programs: %s\n", error.what());
    return 1;
  }
}
