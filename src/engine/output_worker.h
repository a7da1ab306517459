// The output thread: deltas in, Outputs out. Detokenises, cuts chunks by stream_interval and calls back.
//
// Post in order; what belongs to one request is told in order. Callbacks run here and nowhere else.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/log.h"
#include "engine/request_state.h"
#include "text/tokenizer.h"

namespace tokenmill {

struct OutputWorkerOptions {
  std::shared_ptr<const Tokenizer> tokenizer;  // null: texts stay empty
  bool incremental = true;                     // chunks are deltas; else cumulative
  bool log_requests = false;
  const Logger* logger = nullptr;
  // The callback wants no more of this request.
  std::function<void(const std::shared_ptr<RequestState>&)> on_cancel;
  // All samples have finished; called before the last one is told.
  std::function<void(const RequestState&, const FinishReason&)> on_finished;
  // Called now and then, at least every `poll_seconds`, while the thread has nothing else to do; may be null.
  std::function<void()> on_poll;
  double poll_seconds = 0;  // 0: never
};

class OutputWorker {
 public:
  explicit OutputWorker(OutputWorkerOptions options);
  ~OutputWorker();  // stop()

  void start();
  void stop();  // tells what was posted, then joins; idempotent

  // One engine step's deltas. Waits while `kOutboxMax` vectors are waiting: a slow callback slows the engine down
  // rather than filling memory.
  void post(std::vector<Delta> deltas);
  // As post, never waiting: for errors found outside of the engine thread.
  void post_now(std::vector<Delta> deltas);
  // Ends what has not finished of these requests with `error`.
  void post_failure(std::vector<std::shared_ptr<RequestState>> requests, const Error& error);
  // Without a thread (tests that drive steps by hand): tells what was posted, on the calling thread.
  void drain();
  // After stop() (and drain()): nothing more is told.
  void release_tokenizer() { options_.tokenizer.reset(); }
  bool on_this_thread() const { return std::this_thread::get_id() == thread_id_.load(); }

 private:
  static constexpr size_t kOutboxMax = 1024;
  struct Item {
    std::vector<Delta> deltas;
    std::vector<std::shared_ptr<RequestState>> failed;
    std::shared_ptr<const Error> error;
  };

  void run();
  void push(Item item);
  void handle(Item& item);
  void handle_delta(Delta& delta);
  void handle_failure(RequestState& request, const Error& error);
  void tell(const std::shared_ptr<RequestState>& request, int64_t sample, const SequenceEvent& event);
  void tell_failure(const RequestState& request, const Error& error) const;  // once a call
  Output make_output(RequestState& request, int64_t sample, const SequenceEvent& event);
  std::string next_text(RequestState& request, SampleOutput& out, const SequenceEvent& event);
  void append_logprobs(SampleOutput& out, const SampledToken& token) const;
  TokenLogprob token_logprob(int32_t id, float logprob) const;
  void log_finish(const RequestState& request, const Output& output) const;

  OutputWorkerOptions options_;
  std::thread thread_;
  std::atomic<std::thread::id> thread_id_;
  std::mutex mutex_;
  std::condition_variable arrived_, taken_;
  std::deque<Item> items_;
  bool stopping_ = false;
};

}  // namespace tokenmill
