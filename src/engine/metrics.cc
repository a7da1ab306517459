#include "engine/metrics.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "engine/step_clock.h"

namespace tokenmill {
namespace {

constexpr std::array<double, Histogram::kBuckets - 1> kSecondBounds = {1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4,
                                                                       5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1,
                                                                       0.2,  0.5,  1,    2,    5,    10,   30,   60};

struct Counter {
  const char* name;
  const char* help;
  bool gauge;
  double value;
};

std::vector<Counter> counters(const RequestCounters& requests, const SchedulerStats& stats) {
  const auto number = [](int64_t value) { return static_cast<double>(value); };
  const double hit_rate = stats.prompt_tokens == 0 ? 0 : number(stats.cached_tokens) / number(stats.prompt_tokens);
  return {
      {"requests", "requests submitted", false, number(requests.requests)},
      {"finished", "requests that ended by length or stop", false, number(requests.finished)},
      {"aborted", "requests that ended by abort or failure", false, number(requests.aborted)},
      {"running", "sequences that run", true, number(stats.running)},
      {"queue", "sequences that wait in the scheduler", true, number(stats.queue)},
      {"prompt_tokens", "prompt tokens of admitted sequences", false, number(stats.prompt_tokens)},
      {"cached_tokens", "prompt tokens that were found in the cache", false, number(stats.cached_tokens)},
      {"cache_hit_rate", "cached_tokens over prompt_tokens", true, hit_rate},
      {"generated_tokens", "output tokens", false, number(stats.generated_tokens)},
      {"evictions", "KV blocks evicted from the cache", false, number(stats.evictions)},
      {"retractions", "sequences sent back to the queue for lack of KV memory", false, number(stats.retractions)},
      {"preemptions", "sequences sent back to the queue for one of higher priority", false, number(stats.preemptions)},
      {"timeouts", "sequences ended by waiting_timeout or running_timeout", false, number(stats.timeouts)},
      {"blocks_free", "KV blocks that hold nothing", true, number(stats.blocks_free)},
      {"blocks_total", "KV blocks", true, number(stats.blocks_total)},
      {"blocks_cached", "KV blocks in the prefix tree", true, number(stats.blocks_cached)},
      {"blocks_pinned", "KV blocks of pinned prefixes", true, number(stats.blocks_pinned)},
      {"window_blocks_free", "KV blocks of window layers that hold nothing", true, number(stats.window_blocks_free)},
      {"window_blocks_total", "KV blocks of window layers; 0: they have no pool of their own", true,
       number(stats.window_blocks_total)},
      {"window_blocks_cached", "KV blocks of window layers in the prefix tree", true,
       number(stats.window_blocks_cached)},
      {"window_evictions", "KV blocks of window layers evicted from the cache", false, number(stats.window_evictions)},
      {"steps", "steps", false, number(stats.steps)},
      {"prefill_steps", "steps with prompt tokens", false, number(stats.prefill_steps)},
      {"decode_steps", "steps of decodes alone", false, number(stats.decode_steps)},
      {"last_gen_throughput", "output tokens a second at the last 'Decode batch' line", true,
       stats.last_gen_throughput}};
}

struct NamedHistogram {
  std::string name;
  const char* help;
  const Histogram* histogram;
};

std::vector<NamedHistogram> histograms(const EngineMetrics& metrics) {
  std::vector<NamedHistogram> list = {
      {"queue_time_seconds", "from the queue to the first admission", &metrics.queue_time},
      {"time_to_first_token_seconds", "from submit to the first output token", &metrics.time_to_first_token},
      {"inter_token_latency_seconds", "between two output tokens of one sample", &metrics.inter_token_latency},
      {"e2e_latency_seconds", "from submit to the end of a sample", &metrics.e2e_latency},
      {"batch_size", "rows of a step", &metrics.batch_size},
      {"step_tokens", "tokens computed in a step", &metrics.step_tokens}};
  for (size_t part = 0; part < metrics.step_time.size(); ++part) {
    list.push_back(
        {fmt::format("step_{}_seconds", StepClock::kPartNames[part]), "a stage of a step", &metrics.step_time[part]});
  }
  return list;
}

std::string label_text(std::string_view value) {
  std::string text;
  for (const char c : value) {
    if (c == '\\' || c == '"') text += '\\';
    text += c == '\n' ? std::string("\\n") : std::string(1, c);
  }
  return text;
}

}  // namespace

double Histogram::bound(size_t i) const {
  if (i + 1 >= kBuckets) return std::numeric_limits<double>::infinity();
  return scale_ == Scale::kSeconds ? kSecondBounds[i] : std::ldexp(1.0, static_cast<int>(i));
}

size_t Histogram::bucket_of(double value) const {
  if (scale_ == Scale::kSeconds) {
    return static_cast<size_t>(std::lower_bound(kSecondBounds.begin(), kSecondBounds.end(), value) -
                               kSecondBounds.begin());
  }
  size_t i = 0;
  while (i + 1 < kBuckets && value > std::ldexp(1.0, static_cast<int>(i))) ++i;
  return i;
}

void Histogram::add(double value, int64_t times) {
  buckets_[bucket_of(value)] += times;
  count_ += times;
  sum_ += value * static_cast<double>(times);
}

double Histogram::quantile(double q) const {
  if (count_ == 0) return 0;
  const double wanted = q * static_cast<double>(count_);
  double below = 0;
  for (size_t i = 0; i < kBuckets; ++i) {
    const auto here = static_cast<double>(buckets_[i]);
    if (here == 0 || below + here < wanted) {
      below += here;
      continue;
    }
    const double low = i == 0 ? 0 : bound(i - 1);
    const double high = i + 1 == kBuckets ? 2 * low : bound(i);
    return low + (high - low) * std::clamp((wanted - below) / here, 0.0, 1.0);
  }
  return bound(kBuckets - 2);
}

std::map<std::string, double> metrics_map(const RequestCounters& requests, const SchedulerStats& stats,
                                          const EngineMetrics& metrics) {
  std::map<std::string, double> map;
  for (const Counter& counter : counters(requests, stats)) map[counter.name] = counter.value;
  for (const NamedHistogram& named : histograms(metrics)) {
    const Histogram& histogram = *named.histogram;
    map[named.name + "_count"] = static_cast<double>(histogram.count());
    map[named.name + "_sum"] = histogram.sum();
    map[named.name + "_p50"] = histogram.quantile(0.5);
    map[named.name + "_p99"] = histogram.quantile(0.99);
    int64_t sum = 0;
    for (size_t i = 0; i + 1 < Histogram::kBuckets && sum < histogram.count(); ++i) {
      sum += histogram.bucket(i);
      if (sum > 0) map[fmt::format("{}_le_{:g}", named.name, histogram.bound(i))] = static_cast<double>(sum);
    }
  }
  return map;
}

std::string metrics_text(std::string_view model_name, const RequestCounters& requests, const SchedulerStats& stats,
                         const EngineMetrics& metrics) {
  const std::string label = "model_name=\"" + label_text(model_name) + "\"";
  std::string text;
  for (const Counter& counter : counters(requests, stats)) {
    const std::string name = std::string("tokenmill_") + counter.name + (counter.gauge ? "" : "_total");
    text += fmt::format("# HELP {} {}\n# TYPE {} {}\n{}{{{}}} {}\n", name, counter.help, name,
                        counter.gauge ? "gauge" : "counter", name, label, counter.value);
  }
  for (const NamedHistogram& named : histograms(metrics)) {
    const Histogram& histogram = *named.histogram;
    const std::string name = "tokenmill_" + named.name;
    text += fmt::format("# HELP {} {}\n# TYPE {} histogram\n", name, named.help, name);
    int64_t sum = 0;
    for (size_t i = 0; i < Histogram::kBuckets; ++i) {
      sum += histogram.bucket(i);
      const std::string bound = i + 1 == Histogram::kBuckets ? "+Inf" : fmt::format("{:g}", histogram.bound(i));
      text += fmt::format("{}_bucket{{{},le=\"{}\"}} {}\n", name, label, bound, sum);
    }
    text += fmt::format("{}_sum{{{}}} {}\n{}_count{{{}}} {}\n", name, label, histogram.sum(), name, label,
                        histogram.count());
  }
  return text;
}

}  // namespace tokenmill
