// Log lines (count for count what SGLang prints) and figures.
#include <algorithm>
#include <chrono>
#include <cstdio>

#include "sched/scheduler_impl.h"

namespace tokenmill {
namespace {

template <typename... Args>
std::string format(const char* pattern, Args... args) {
  char text[320];
  std::snprintf(text, sizeof text, pattern, args...);
  return text;
}

long long ll(int64_t value) { return value; }

}  // namespace

double Scheduler::Impl::now() const {
  if (options.now_seconds) return options.now_seconds();
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Share of the pool that running sequences hold; what is only cached can be evicted and does not count.
double Scheduler::Impl::token_usage() const {
  int64_t total = cache.total_blocks();
  const double full =
      total == 0 ? 0 : static_cast<double>(total - cache.available_blocks()) / static_cast<double>(total);
  total = cache.window_total_blocks();
  if (total == 0) return full;
  return std::max(full, static_cast<double>(total - cache.window_available_blocks()) / static_cast<double>(total));
}

void Scheduler::Impl::log(const std::string& line) const {
  if (options.log_info) options.log_info(line);
}

void Scheduler::Impl::log_prefill() {
  logged_new_tokens += step->new_tokens;
  logged_cached_tokens += step->cached_tokens;
  if (!options.log_info) return;
  double hit_rate =
      100.0 * static_cast<double>(logged_cached_tokens) / static_cast<double>(logged_new_tokens + logged_cached_tokens);
  std::string line = "Prefill batch";
  if (step->decodes > 0) line += format("(mixed #running-req: %lld)", ll(step->decodes));
  line += format(". #new-seq: %lld, #new-token: %lld, #cached-token: %lld, cache hit rate: %.2f%%, token usage: %.2f, ",
                 ll(step->prefills), ll(step->new_tokens), ll(step->cached_tokens), hit_rate, token_usage());
  if (step->decodes == 0) line += format("#running-req: %lld, ", ll(step->running_before));
  log(line + format("#queue-req: %lld", ll(waiting.size())));
}

void Scheduler::Impl::log_decode() {
  double seconds = now() - last_decode_line_seconds;
  totals.last_gen_throughput = seconds > 0 ? static_cast<double>(tokens_since_decode_line) / seconds : 0;
  last_decode_line_seconds += seconds;
  tokens_since_decode_line = 0;
  if (!options.log_info) return;
  // Distinct slots: shared prefixes count once.
  int64_t tokens = cache.locked_tokens();
  for (const Sequence* sequence : running) tokens += sequence->kv_len - sequence->lease.tree_tokens;
  log(
      format("Decode batch. #running-req: %lld, #token: %lld, token usage: %.2f, gen throughput (token/s): %.2f, "
             "#queue-req: %lld",
             ll(static_cast<int64_t>(running.size())), ll(tokens), token_usage(), totals.last_gen_throughput,
             ll(waiting.size())));
}

void Scheduler::Impl::log_retraction(int64_t retracted, double ratio_before) const {
  log(format("Decode out of memory happened. #retracted_reqs: %lld, #new_token_ratio: %.4f -> %.4f", ll(retracted),
             ratio_before, ratio.value()));
}

bool Scheduler::Impl::flush_cache() {
  if (!idle() || in_flight) return false;
  cache.clear();
  ratio.reset();
  return true;
}

SchedulerStats Scheduler::Impl::stats() const {
  SchedulerStats stats = totals;
  stats.running = static_cast<int64_t>(running.size());
  stats.queue = waiting.size();
  stats.evictions = cache.evictions();
  stats.blocks_free = cache.free_blocks();
  stats.blocks_total = cache.total_blocks();
  stats.blocks_cached = cache.cached_blocks();
  stats.blocks_pinned = cache.pinned_blocks();
  stats.window_blocks_free = cache.window_free_blocks();
  stats.window_blocks_total = cache.window_total_blocks();
  stats.window_blocks_cached = cache.window_cached_blocks();
  stats.window_evictions = cache.window_evictions();
  return stats;
}

}  // namespace tokenmill
