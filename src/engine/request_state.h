// One submitted request on its way through the threads: caller -> inbox -> engine thread -> outbox -> output thread.
//
// Each part says who writes it; what crosses a thread travels under the inbox's or the outbox's lock.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "sched/sequence_spec.h"
#include "text/text_stream.h"
#include "tokenmill/engine.h"

namespace tokenmill {

// One submit(): where its outputs go.
struct Call {
  OutputCallback on_output;
  // The engine died or was shut down while requests of the call ran; at most once, on the output thread. Null: each
  // unfinished sample ends with an Output whose finish_reason is abort.
  std::function<void(const Error&)> on_failure;
  // Of one prompt, whose sampling that fails is the call's failure: on_failure hears of it, and no Output tells it.
  bool fails_with_its_request = false;
  bool failure_told = false;  // output thread
};

// What the output thread knows of one sample.
struct SampleOutput;

struct RequestState {
  RequestState();
  ~RequestState();

  // Set by submit, then constant.
  std::shared_ptr<Call> call;
  std::string rid;          // the caller's; else register_states() gives one
  uint64_t number = 0;      // of the request in the engine's life: its group, and the source of its seed
  int64_t first_index = 0;  // Output::index of sample 0
  int64_t num_samples = 1;
  bool stream = false, return_prompt_token_ids = false, no_stop_trim = false;
  bool want_logprob = false;
  PinOrder pin;
  int64_t stream_interval = 1;
  TextStreamOptions text_options;
  std::chrono::steady_clock::time_point submitted;

  // Set before the state enters the inbox or the outbox; empty where the prompt never came to be.
  std::shared_ptr<const std::vector<int32_t>> prompt;

  std::atomic<bool> abort_requested{false};  // any thread

  // Engine thread.
  uint64_t first_sequence_id = 0;  // 0: not in the scheduler

  // Output thread.
  std::vector<SampleOutput> samples;
  int64_t unfinished = 0;
  bool cancelled = false;  // on_output returned false or threw: nothing more is told
};

// One event of one sample, for the output thread.
struct Delta {
  std::shared_ptr<RequestState> request;
  int64_t sample = 0;
  SequenceEvent event;
};

}  // namespace tokenmill
