// What the engine counts of itself: histograms beside the scheduler's counters, as a flat map and as Prometheus text.
//
// Written by the engine thread, a few additions a step; readers get a copy.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "sched/scheduler.h"

namespace tokenmill {

// Counts by upper bounds: 1, 2, 5 times powers of ten (seconds), or powers of two (sizes).
class Histogram {
 public:
  enum class Scale { kSeconds, kSize };
  explicit Histogram(Scale scale) : scale_(scale) {}

  void add(double value, int64_t times = 1);
  int64_t count() const { return count_; }
  double sum() const { return sum_; }
  // Within the bucket the values count as evenly spread; 0 when empty.
  double quantile(double q) const;
  // Bucket i holds what is at most bound(i) and above bound(i - 1); the last one is unbounded.
  int64_t bucket(size_t i) const { return buckets_[i]; }
  double bound(size_t i) const;

  static constexpr size_t kBuckets = 25;

 private:
  size_t bucket_of(double value) const;

  Scale scale_;
  std::array<int64_t, kBuckets> buckets_{};
  int64_t count_ = 0;
  double sum_ = 0;
};

struct EngineMetrics {
  Histogram queue_time{Histogram::Scale::kSeconds};           // from the scheduler's add to the first admission
  Histogram time_to_first_token{Histogram::Scale::kSeconds};  // from submit to the step that gave it
  Histogram inter_token_latency{Histogram::Scale::kSeconds};
  Histogram e2e_latency{Histogram::Scale::kSeconds};  // of a sample, from submit to its last step
  std::array<Histogram, 6> step_time{
      Histogram{Histogram::Scale::kSeconds}, Histogram{Histogram::Scale::kSeconds},
      Histogram{Histogram::Scale::kSeconds}, Histogram{Histogram::Scale::kSeconds},
      Histogram{Histogram::Scale::kSeconds}, Histogram{Histogram::Scale::kSeconds}};  // by StepClock::Part
  Histogram batch_size{Histogram::Scale::kSize};                                      // rows of a step
  Histogram step_tokens{Histogram::Scale::kSize};
};

// Counters of the requests, kept by other threads.
struct RequestCounters {
  int64_t requests = 0, finished = 0, aborted = 0;
};

// Keys: a counter's name; a histogram's name with _count, _sum, _p50, _p99 and _le_BOUND (cumulative, as Prometheus has
// them; empty ones at the end are left out).
std::map<std::string, double> metrics_map(const RequestCounters& requests, const SchedulerStats& stats,
                                          const EngineMetrics& metrics);

// Prometheus' text format 0.0.4; every name begins with tokenmill_ and has the label model_name.
std::string metrics_text(std::string_view model_name, const RequestCounters& requests, const SchedulerStats& stats,
                         const EngineMetrics& metrics);

}  // namespace tokenmill
