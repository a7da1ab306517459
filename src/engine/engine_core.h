// One model's engine: the loop and its threads. engine.cc wraps it in the public API; tests build it over a model of
// their own and may drive step() by hand.
//
//   callers ──submit──► inbox ──► engine thread: admit, schedule, forward, commit, publish ──► OutputWorker ──►
//   callbacks
//
// The engine thread owns scheduler and runner; nothing else touches them while it runs.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <future>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/log.h"
#include "checkpoint/fingerprint.h"
#include "engine/metrics.h"
#include "engine/output_worker.h"
#include "engine/pool_size.h"
#include "engine/prefix_file.h"
#include "engine/request_preparer.h"
#include "engine/request_state.h"
#include "engine/step_clock.h"
#include "engine/trace_writer.h"
#include "models/model.h"
#include "ops/backend.h"
#include "runner/model_runner.h"
#include "sched/scheduler.h"
#include "text/tokenizer.h"
#include "tokenmill/engine.h"

namespace tokenmill {

// What an engine is made of; the loader makes it from a checkpoint, tests from parts of their own.
struct EngineParts {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Model> model;
  ModelFiles files;                            // none: save_prefix and load_prefix throw
  std::shared_ptr<const Tokenizer> tokenizer;  // null with skip_tokenizer_init
  std::string chat_template;                   // "": the tokenizer's own
  int64_t available_before_load = 0;           // bytes; 0: not known
  Logger::Sink log_sink;                       // null: stderr
  bool check_every_step = false;               // check_integrity() after each step: for tests, it reads all blocks
};

class EngineCore {
 public:
  // args must be resolved (resolve_server_args). Sizes the KV pool and reserves all memory; no thread runs yet.
  EngineCore(ServerArgs args, EngineParts parts);
  ~EngineCore();  // shutdown()
  EngineCore(const EngineCore&) = delete;
  EngineCore& operator=(const EngineCore&) = delete;

  void start();  // the engine thread and the output thread

  // Throws Error when the arguments are bad, an id is taken, or (single) the prompt cannot run. Returns the ids.
  // `pin`: of a single request. keep_going: see Engine::submit; of a list.
  std::vector<std::string> submit(std::vector<Request> requests, std::shared_ptr<Call> call, bool single,
                                  PinOrder pin = {}, const KeepGoing& keep_going = nullptr);
  // Waits until the queue has room for a request, or the engine ends.
  void wait_for_room();
  void abort(std::string_view rid);
  void abort_call(const Call& call);
  void abort_all();
  bool flush_cache();
  // Computes and holds a prompt; returns its number for unpin() and its tokens. Throws Error. brief: see PinOrder.
  std::pair<uint64_t, int64_t> pin(Request request, bool brief = false);
  // Computes a prompt, writes its whole blocks' K/V to a file, and reads them back into the cache. Return the number of
  // tokens. Throw Error, see Engine.
  int64_t save_prefix(Request request, const std::string& path);
  int64_t load_prefix(const std::string& path, const std::optional<std::string>& cache_salt);
  void unpin(uint64_t pin);  // any thread, does not wait; nothing after the end of the engine
  std::map<std::string, double> stats() const;
  std::string prometheus_metrics() const;
  void shutdown();

  // One turn of the loop; false when there was nothing to do. Without start(): deliver() then tells the outputs.
  bool step();
  void deliver() { outputs_.drain(); }
  // Between two steps of the engine thread; throws InvariantError when scheduler and cache contradict each other.
  void check_integrity();

  const ServerArgs& args() const { return args_; }
  // Null with skip_tokenizer_init. Both throw Error once the engine was shut down and has freed them.
  std::shared_ptr<const Tokenizer> tokenizer() const;
  std::shared_ptr<const RequestPreparer> preparer() const;
  std::optional<int32_t> bos_token_id() const { return bos_token_id_; }
  const std::vector<int32_t>& eos_token_ids() const { return eos_token_ids_; }
  std::optional<int32_t> eos_token_id() const { return eos_token_id_; }
  const ModelConfig& model_config() const { return model_config_; }
  const Logger& logger() const { return logger_; }
  int64_t max_total_num_tokens() const { return max_total_num_tokens_; }
  int64_t kv_bytes_per_token() const { return kv_bytes_per_token_; }
  int64_t weight_bytes() const { return weight_bytes_; }
  // What construction took: reserving pool and work space, and recording the first graphs.
  double pool_seconds() const { return pool_seconds_; }
  double graphs_seconds() const { return graphs_seconds_; }
  const std::string& backend_description() const { return backend_description_; }
  bool on_output_thread() const { return outputs_.on_this_thread(); }

  static constexpr const char* kQueueFull = "The request queue is full.";
  static constexpr size_t kWindowPrompts = 4096;  // of a list call, waiting at once

 private:
  // One request, ready for the scheduler.
  struct Admission {
    std::shared_ptr<RequestState> state;
    std::vector<SequenceSpec> specs;
  };
  using AdmissionUnit = std::vector<Admission>;
  // What the engine thread knows of a sequence in the scheduler.
  struct LiveSequence {
    std::shared_ptr<RequestState> state;
    int64_t sample = 0;
    bool admitted = false;
    std::chrono::steady_clock::time_point last_token = {};  // no token yet: the epoch
  };
  struct Inbox {
    std::mutex mutex;
    std::condition_variable arrived;  // for the engine thread
    std::condition_variable room;     // for feeders
    std::vector<AdmissionUnit> units;
    std::vector<std::shared_ptr<RequestState>> aborts;
    std::vector<std::packaged_task<bool()>> tasks;  // what a caller wants done between two steps
    int64_t waiting = 0;                            // requests in units
    int64_t queued = 0;                             // sequences that wait in the scheduler, as of the last step
    bool stopping = false;
  };
  // A list call longer than the window: a thread that tokenises and feeds it.
  struct Feeder {
    std::thread thread;
    std::atomic<bool> done{false};
  };

  // Construction.
  PoolBlocks make_runner(EngineParts& parts, int32_t window);
  void make_scheduler(const PoolBlocks& blocks, int32_t window);
  void warm_up();

  // Loop (engine thread).
  void run();
  bool wait_for_work();
  void admit();
  void execute(const Batch& batch);
  void finish_step();
  std::optional<std::string> failure_of(const std::function<void()>& work) const;
  bool publish();
  void measure(const SequenceEvent& event, LiveSequence& sequence, std::chrono::steady_clock::time_point now);
  void on_first_admission(uint64_t sequence_id, double queued_seconds, int64_t cached_tokens);
  void measure_step(const Batch& batch);
  RequestCounters request_counters() const;
  void die(const std::string& message);
  void check_progress(bool progressed);
  bool flush_between_steps();

  // Callers.
  PrefixKey prefix_key();
  bool has_window_pool() const { return kv_shape_.window_blocks > 0; }
  // The K/V of a pin's whole blocks, and their tokens.
  std::vector<std::byte> read_pinned(uint64_t pin, std::vector<int32_t>& tokens);
  void check_prefix_bits(const std::string& path, std::span<const int32_t> tokens, std::span<const std::byte> kv);
  std::vector<std::string> register_states(const std::vector<std::shared_ptr<RequestState>>& states);
  void forget(const RequestState& state);
  bool ask(std::function<bool()> task);
  void submit_single(const RequestPreparer& preparer, const Request& request,
                     const std::shared_ptr<RequestState>& state);
  void submit_unit(const RequestPreparer& preparer, const std::vector<Request>& requests,
                   const std::vector<std::shared_ptr<RequestState>>& states, const KeepGoing& keep_going);
  void feed(const RequestPreparer& preparer, std::vector<Request> requests,
            std::vector<std::shared_ptr<RequestState>> states);
  void start_feeder(std::shared_ptr<const RequestPreparer> preparer, std::vector<Request> requests,
                    std::vector<std::shared_ptr<RequestState>> states);
  bool prepare_range(const RequestPreparer& preparer, const std::vector<Request>& requests,
                     const std::vector<std::shared_ptr<RequestState>>& states, size_t begin, size_t end,
                     const KeepGoing& keep_going, AdmissionUnit& unit, std::vector<Delta>& errors) const;
  bool enqueue(AdmissionUnit unit, std::vector<Delta>& rejected);
  template <class Wanted>
  void abort_where(Wanted wanted);
  void request_abort(const std::shared_ptr<RequestState>& state);
  void close(const Error& error);
  void tell_the_end();
  void check_open() const;
  void log_receive(const Request& request, const RequestState& state) const;
  int64_t queue_limit() const;

  ServerArgs args_;
  Logger logger_;
  std::shared_ptr<const Tokenizer> tokenizer_;  // shutdown() lets go of it, under registry_mutex_
  ModelConfig model_config_;
  std::vector<int32_t> eos_token_ids_;
  std::optional<int32_t> eos_token_id_, bos_token_id_;
  std::shared_ptr<const RequestPreparer> preparer_;  // as tokenizer_
  bool check_every_step_ = false;
  int64_t max_total_num_tokens_ = 0, kv_bytes_per_token_ = 0, weight_bytes_ = 0;
  ModelFiles model_files_;
  std::mutex fingerprint_mutex_;
  std::string fingerprint_;  // of model_files_, when it was first asked for; under fingerprint_mutex_
  KvPoolShape kv_shape_;     // callers read these two, also while shutdown() frees the runner
  int64_t kv_block_bytes_ = 0;
  std::string backend_description_;
  double pool_seconds_ = 0, graphs_seconds_ = 0;

  std::unique_ptr<ModelRunner> runner_;
  std::unique_ptr<Scheduler> scheduler_;
  bool overlap_ = false;                                  // a step is launched before the one before it is committed
  std::optional<ModelRunner::InFlight> in_flight_;        // engine thread; with overlap_: the step to be committed
  std::unordered_map<uint64_t, LiveSequence> sequences_;  // engine thread
  uint64_t next_sequence_id_ = 1;
  int64_t idle_turns_ = 0;
  StepClock clock_;

  Inbox inbox_;
  mutable std::mutex registry_mutex_;
  std::unordered_map<std::string, std::shared_ptr<RequestState>> registry_;
  std::optional<Error> closed_;  // why nothing more is taken; under registry_mutex_
  uint64_t next_number_ = 0;     // under registry_mutex_
  uint64_t next_rid_ = 0;        // under registry_mutex_

  mutable std::mutex stats_mutex_;
  SchedulerStats scheduler_stats_;  // under stats_mutex_, as told_metrics_: copies of the last step
  EngineMetrics told_metrics_;
  EngineMetrics metrics_;               // engine thread
  std::unique_ptr<TraceWriter> trace_;  // engine thread; null: none
  std::atomic<uint64_t> next_pin_{1};
  std::atomic<int64_t> num_requests_{0}, num_finished_{0}, num_aborted_{0};

  std::mutex feeders_mutex_;
  std::list<Feeder> feeders_;
  std::mutex shutdown_mutex_;
  std::atomic<bool> shut_down_{false};
  std::thread thread_;
  OutputWorker outputs_;  // last: its thread calls back into all of the above
};

}  // namespace tokenmill
