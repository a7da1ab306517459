// A trace of steps and requests in the Chrome trace event format (JSON array form), for chrome://tracing and Perfetto.
//
//   thread "steps"     a slice a step, and inside it one a stage
//   counters           batch, queue, KV blocks in use, cache hit rate
//   async "requests"   one track a sample: queued, prefill, decode
//
// Written by the engine thread through a buffer; a process that is killed leaves a file that both viewers still read.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>

#include "batch/batch.h"
#include "engine/step_clock.h"
#include "sched/scheduler.h"

namespace tokenmill {

class TraceWriter {
 public:
  // Throws Error(kValue) naming the file when it cannot be written. Replaces what is there.
  explicit TraceWriter(const std::string& path);
  ~TraceWriter();
  TraceWriter(const TraceWriter&) = delete;
  TraceWriter& operator=(const TraceWriter&) = delete;

  // Nanoseconds on the steady clock.
  void step(const StepClock& clock, const Batch& batch, const SchedulerStats& stats);
  void request_queued(uint64_t sequence_id, std::string_view rid, int64_t submitted_ns, int64_t prompt_tokens);
  void request_admitted(uint64_t sequence_id, int64_t now_ns, int64_t cached_tokens);
  void request_first_token(uint64_t sequence_id, int64_t now_ns);
  void request_ended(uint64_t sequence_id, std::string_view rid, int64_t now_ns, const SequenceEvent& event,
                     bool admitted, bool decoding);

  // The file stops growing here; the engine goes on.
  static constexpr int64_t kBytesMax = int64_t{2} << 30;

 private:
  template <class... Args>
  void event(const char* format, Args... args);
  double micros(int64_t ns) const { return static_cast<double>(ns - start_ns_) / 1e3; }

  struct Close {
    void operator()(FILE* file) const { std::fclose(file); }
  };
  std::unique_ptr<FILE, Close> file_;
  int64_t start_ns_, bytes_ = 0;
  bool first_ = true;
};

}  // namespace tokenmill
