// What EngineCore measures of its requests and steps, and tells.
#include "engine/engine_core.h"

namespace tokenmill {
namespace {

double seconds(std::chrono::steady_clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

}  // namespace

void EngineCore::on_first_admission(uint64_t sequence_id, double queued_seconds, int64_t cached_tokens) {
  metrics_.queue_time.add(queued_seconds);
  const auto found = sequences_.find(sequence_id);
  if (found == sequences_.end()) return;
  found->second.admitted = true;
  if (trace_) {
    trace_->request_admitted(sequence_id, std::chrono::steady_clock::now().time_since_epoch().count(), cached_tokens);
  }
}

// `now` is the end of the step, one reading for all of its tokens.
void EngineCore::measure(const SequenceEvent& event, LiveSequence& sequence,
                         std::chrono::steady_clock::time_point now) {
  const bool decoding = sequence.last_token.time_since_epoch().count() != 0;
  if (!event.tokens.empty()) {
    if (decoding) {
      metrics_.inter_token_latency.add(seconds(now - sequence.last_token));
    } else {
      metrics_.time_to_first_token.add(seconds(now - sequence.state->submitted));
      if (trace_) trace_->request_first_token(event.sequence_id, now.time_since_epoch().count());
    }
    sequence.last_token = now;
  }
  if (!event.finish) return;
  metrics_.e2e_latency.add(seconds(now - sequence.state->submitted));
  if (trace_) {
    trace_->request_ended(event.sequence_id, sequence.state->rid, now.time_since_epoch().count(), event,
                          sequence.admitted, sequence.last_token.time_since_epoch().count() != 0);
  }
}

void EngineCore::measure_step(const Batch& batch) {
  for (size_t part = 0; part < metrics_.step_time.size(); ++part) {
    metrics_.step_time[part].add(1e-9 * static_cast<double>(clock_.part_ns(static_cast<StepClock::Part>(part))));
  }
  metrics_.batch_size.add(static_cast<double>(batch.rows.size()));
  metrics_.step_tokens.add(static_cast<double>(batch.tokens.size()));
  if (trace_) trace_->step(clock_, batch, scheduler_->stats());
  // What concerns requests was told before their outputs; a step's own time is known only now.
  const std::lock_guard lock(stats_mutex_);
  told_metrics_ = metrics_;
}

RequestCounters EngineCore::request_counters() const {
  return {.requests = num_requests_, .finished = num_finished_, .aborted = num_aborted_};
}

std::map<std::string, double> EngineCore::stats() const {
  SchedulerStats stats;
  EngineMetrics metrics;
  {
    const std::lock_guard lock(stats_mutex_);
    stats = scheduler_stats_;
    metrics = told_metrics_;
  }
  return metrics_map(request_counters(), stats, metrics);
}

std::string EngineCore::prometheus_metrics() const {
  SchedulerStats stats;
  EngineMetrics metrics;
  {
    const std::lock_guard lock(stats_mutex_);
    stats = scheduler_stats_;
    metrics = told_metrics_;
  }
  return metrics_text(args_.served_model_name.value_or(args_.model_path), request_counters(), stats, metrics);
}

}  // namespace tokenmill
