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
  struct Micros {
    int64_t ns = 0;
  };
  Micros at(int64_t ns) const { return {ns - start_ns_}; }
  bool begin(std::string_view object);
  void slice(std::string_view name, int64_t begin_ns, int64_t duration_ns);
  void counter(std::string_view name, int64_t now_ns);
  bool stage(char phase, uint64_t sequence_id, std::string_view name, int64_t ns);
  TraceWriter& operator<<(std::string_view text);
  TraceWriter& operator<<(int64_t number);
  TraceWriter& operator<<(Micros time);
  void flush();

  struct Close {
    void operator()(FILE* file) const { std::fclose(file); }
  };
  std::unique_ptr<FILE, Close> file_;
  std::string buffer_;
  int64_t start_ns_, bytes_ = 0;  // bytes written
};

}  // namespace tokenmill
