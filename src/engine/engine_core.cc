// The loop: the picture of docs/ARCHITECTURE.md, one function a line.
#include "engine/engine_core.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/check.h"
#include "engine/pool_size.h"
#include "engine/text_repr.h"
#include "ops/backend_registry.h"

namespace tokenmill {
namespace {

EvictionPolicy parse_eviction(const std::string& name) {
  if (name == "lfu") return EvictionPolicy::kLfu;
  if (name == "fifo") return EvictionPolicy::kFifo;
  return EvictionPolicy::kLru;
}

// The options that need the model: context_length is at most what the model declares.
ServerArgs with_model(ServerArgs args, const ModelConfig& config, const Backend& backend) {
  require_rule(args.context_length.value_or(1) <= config.max_position, "context_length",
               "at most the model's own " + std::to_string(config.max_position) +
                   " tokens (json_model_override_args can change that)",
               args.context_length);
  if (!args.context_length) args.context_length = config.max_position;
  if (!args.num_threads) args.num_threads = backend.num_threads();
  return args;
}

std::vector<int32_t> union_eos(const ModelConfig& config, const Tokenizer* tokenizer) {
  std::vector<int32_t> ids = config.eos_token_ids;
  if (tokenizer != nullptr) {
    const std::vector<int32_t> more = tokenizer->eos_token_ids();
    ids.insert(ids.end(), more.begin(), more.end());
  }
  std::erase_if(ids, [&](int32_t id) { return id < 0 || id >= config.vocab_size; });
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

std::optional<int32_t> main_eos(const ModelConfig& config, const Tokenizer* tokenizer) {
  if (tokenizer != nullptr && tokenizer->eos_token_id()) return tokenizer->eos_token_id();
  if (config.eos_token_ids.empty()) return std::nullopt;
  return config.eos_token_ids.front();
}

// Tokens one step can hold: a chunk (or whole prompts) and the decodes that ride along. Each takes a place in the pool.
int64_t prefill_tokens_per_step(const ServerArgs& args) {
  return *args.chunked_prefill_size > 0 ? *args.chunked_prefill_size
                                        : std::max(args.max_prefill_tokens, *args.context_length);
}
int64_t tokens_per_step(const ServerArgs& args, int64_t max_total_num_tokens) {
  return std::min(prefill_tokens_per_step(args), max_total_num_tokens) + *args.max_running_requests;
}

// The window that all layers with one share in the KV pool: the longest. 0: there is none that leaves anything out.
int32_t window_of_group(const ModelConfig& config, int64_t context_length) {
  int32_t window = 0;
  for (const int32_t of_layer : config.layer_window) window = std::max(window, of_layer);
  return window < context_length ? window : 0;
}

// Rows of the largest step that runs as a CUDA graph. Those of a few rows are captured at start, the others when first
// met.
constexpr int64_t kGraphRowsDefault = 256, kGraphRowsAtStart = 8;

SchedulerOptions scheduler_options(const ServerArgs& args, int32_t num_blocks,
                                   const std::shared_ptr<const Tokenizer>& tokenizer, const Logger& logger) {
  SchedulerOptions options;
  options.page_size = static_cast<int32_t>(*args.page_size);
  options.num_blocks = num_blocks;
  options.context_length = *args.context_length;
  options.max_running_requests = *args.max_running_requests;
  options.max_prefill_tokens = args.max_prefill_tokens;
  options.chunked_prefill_size = *args.chunked_prefill_size;
  options.enable_mixed_chunk = args.enable_mixed_chunk;
  options.policy = find_policy(args.schedule_policy).value();
  options.schedule_conservativeness = args.schedule_conservativeness;
  options.disable_radix_cache = args.disable_radix_cache;
  options.eviction = parse_eviction(args.radix_eviction_policy);
  options.waiting_timeout_seconds = args.waiting_timeout.value_or(0);
  options.running_timeout_seconds = args.running_timeout.value_or(0);
  options.decode_log_interval = args.decode_log_interval;
  options.random_seed = static_cast<uint64_t>(*args.random_seed);
  if (tokenizer) options.token_bytes = [tokenizer](int32_t id) { return tokenizer->token_bytes(id); };
  if (logger.enabled(LogLevel::kInfo)) options.log_info = [&logger](const std::string& line) { logger.info(line); };
  return options;
}

PreparerOptions preparer_options(const ServerArgs& args, const EngineParts& parts, const ModelConfig& config,
                                 const std::vector<int32_t>& eos_token_ids) {
  return {.tokenizer = parts.tokenizer,
          .chat_template = parts.chat_template,
          .eos_token_ids = eos_token_ids,
          .vocab_size = config.vocab_size,
          .context_length = *args.context_length,
          .stream_interval = args.stream_interval,
          .random_seed = static_cast<uint64_t>(*args.random_seed),
          .allow_auto_truncate = args.allow_auto_truncate};
}

}  // namespace

EngineCore::EngineCore(ServerArgs args, EngineParts parts)
    : args_(with_model(std::move(args), parts.model->config(), *parts.backend)),
      logger_(args_.log_level, std::move(parts.log_sink)),
      tokenizer_(parts.tokenizer),
      model_config_(parts.model->config()),
      eos_token_ids_(union_eos(model_config_, tokenizer_.get())),
      eos_token_id_(main_eos(model_config_, tokenizer_.get())),
      bos_token_id_(tokenizer_ && tokenizer_->bos_token_id() ? tokenizer_->bos_token_id() : model_config_.bos_token_id),
      preparer_(std::make_shared<const RequestPreparer>(preparer_options(args_, parts, model_config_, eos_token_ids_))),
      check_every_step_(parts.check_every_step),
      weight_bytes_(static_cast<int64_t>(parts.model->weight_bytes())),
      model_files_(std::move(parts.files)),
      backend_description_(parts.backend->description()),
      outputs_({.tokenizer = tokenizer_,
                .incremental = args_.incremental_streaming_output,
                .log_requests = args_.log_requests,
                .logger = &logger_,
                .on_cancel = [this](const std::shared_ptr<RequestState>& state) { request_abort(state); },
                .on_finished =
                    [this](const RequestState& state, const FinishReason& reason) {
                      (reason.type == FinishReason::Type::kAbort ? num_aborted_ : num_finished_)++;
                      forget(state);
                    },
                .on_poll =
                    [this] {
                      if (const auto seconds = clock_.overdue(args_.watchdog_timeout)) {
                        logger_.error(fmt::format("A step has been running for {:.1f} s (watchdog_timeout={}).",
                                                  *seconds, python_repr(args_.watchdog_timeout)));
                      }
                    },
                .poll_seconds = args_.watchdog_timeout > 0 ? std::clamp(args_.watchdog_timeout / 4, 0.02, 30.0) : 0}) {
  const auto start = std::chrono::steady_clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  const auto page_size = static_cast<int32_t>(*args_.page_size);
  const int32_t window = window_of_group(model_config_, *args_.context_length);
  const auto block_bytes = [&](KvGroup group) {
    return ModelRunner::kv_bytes_per_block(*parts.model, *parts.backend, page_size, window > 0, group);
  };
  const auto [num_blocks, window_blocks] =
      choose_pool_blocks(args_, {.context_length = *args_.context_length,
                                 .block_bytes = block_bytes(KvGroup::kFull),
                                 .window = window,
                                 .chunk_tokens = std::min(prefill_tokens_per_step(args_), *args_.context_length),
                                 .window_block_bytes = block_bytes(KvGroup::kWindow),
                                 .available_bytes = parts.backend->available_memory(),
                                 .available_before_load = parts.available_before_load,
                                 .weight_bytes = weight_bytes_,
                                 .own_memory = device_defaults(*args_.device).own_memory});
  kv_bytes_per_token_ = (block_bytes(KvGroup::kFull) + block_bytes(KvGroup::kWindow)) / page_size;
  max_total_num_tokens_ = int64_t{num_blocks} * page_size;
  if (!args_.max_running_requests) {
    args_.max_running_requests = choose_running_requests(max_total_num_tokens_, *args_.context_length);
  }
  args_.max_total_tokens = max_total_num_tokens_;
  runner_ =
      std::make_unique<ModelRunner>(std::move(parts.backend), std::move(parts.model),
                                    RunnerOptions{.page_size = page_size,
                                                  .num_blocks = num_blocks,
                                                  .window_blocks = window_blocks,
                                                  .max_tokens_per_step = tokens_per_step(args_, max_total_num_tokens_),
                                                  .max_rows = *args_.max_running_requests,
                                                  .graph_rows_max = args_.cuda_graph_max_bs.value_or(kGraphRowsDefault),
                                                  .use_graphs = !args_.disable_cuda_graph});
  runner_->backend().set_warning_sink([this](const std::string& line) { logger_.warning(line); });
  overlap_ = runner_->backend().overlaps() && !args_.disable_overlap_schedule;
  kv_shape_ = runner_->kv_shape();
  kv_block_bytes_ = runner_->block_bytes();
  SchedulerOptions options = scheduler_options(args_, num_blocks, tokenizer_, logger_);
  options.window = window;
  options.window_blocks = window_blocks;
  options.on_first_admission = [this](uint64_t id, double queued_seconds, int64_t cached_tokens) {
    on_first_admission(id, queued_seconds, cached_tokens);
  };
  scheduler_ = std::make_unique<Scheduler>(std::move(options));
  if (args_.trace_path) trace_ = std::make_unique<TraceWriter>(*args_.trace_path);
  scheduler_stats_ = scheduler_->stats();
  if (window > 0) {
    logger_.info(fmt::format("Use Sliding window memory pool. full_layer_tokens={}, swa_layer_tokens={}",
                             max_total_num_tokens_, int64_t{window_blocks} * page_size));
  }
  logger_.info("Memory pool end. avail mem=" + gib_text(runner_->backend().available_memory()) + " GB");
  pool_seconds_ = seconds();
  if (runner_->backend().has_graphs()) runner_->warm_up();
  if (runner_->backend().has_graphs() && !args_.disable_cuda_graph) {
    if (runner_->graph_rows_max() > 0) {
      logger_.info("Capture cuda graph begin. This can take up to several minutes.");
    } else {
      logger_.info(
          "CUDA graphs are off: this model's rotation depends on a sequence's length (rope scaling 'dynamic').");
    }
    runner_->prepare_graphs(kGraphRowsAtStart);
    graphs_seconds_ = seconds() - pool_seconds_;
  }
  logger_.info(fmt::format("max_total_num_tokens={}, max_prefill_tokens={}, max_running_requests={}, context_len={}",
                           max_total_num_tokens_, args_.max_prefill_tokens, *args_.max_running_requests,
                           *args_.context_length));
}

EngineCore::~EngineCore() { shutdown(); }

void EngineCore::start() {
  outputs_.start();
  thread_ = std::thread([this] { run(); });
}

void EngineCore::run() {
  try {
    while (wait_for_work()) check_progress(step());
  } catch (const std::exception& error) {
    die(error.what());
  } catch (...) {
    die("an unknown exception");
  }
}

bool EngineCore::wait_for_work() {
  std::unique_lock lock(inbox_.mutex);
  const auto ready = [&] {
    return inbox_.stopping || !inbox_.units.empty() || !inbox_.aborts.empty() || !inbox_.tasks.empty();
  };
  if (!scheduler_->has_work() && !in_flight_) inbox_.arrived.wait(lock, ready);
  return !inbox_.stopping;
}

// With overlap_ a turn launches a step and commits the one before:
//
//   device        [forward 1][sample 1][forward 2          ][sample 2][forward 3          ][sample 3]
//   this thread   … launch 2, wait 1, commit 1, launch sample 2, publish 1 | plan 3, launch 3, wait 2, commit 2, …
//
// Masks and penalties see all tokens before theirs: sampling is launched after the commit, while forward still runs.
bool EngineCore::step() {
  TM_CHECK(scheduler_ != nullptr);
  clock_.begin_step();
  const bool committed = in_flight_.has_value();
  admit();
  clock_.end_part(StepClock::kAdmit);
  const Batch* batch = in_flight_ ? scheduler_->schedule_ahead() : nullptr;
  if (batch == nullptr) {
    finish_step();
    batch = scheduler_->schedule();
  }
  clock_.end_part(StepClock::kSchedule);
  if (batch != nullptr) execute(*batch);
  if (check_every_step_) scheduler_->check_integrity();
  const bool told = publish();
  clock_.end_part(StepClock::kPublish);
  if (batch != nullptr) measure_step(*batch);
  clock_.end_step(batch != nullptr);
  if (args_.show_time_cost) {
    if (const auto line = clock_.report(args_.decode_log_interval)) logger_.info(*line);
  }
  return batch != nullptr || committed || told;
}

// A scheduler that has work, runs nothing and ends nothing would spin for ever.
void EngineCore::check_progress(bool progressed) {
  static constexpr int64_t kIdleTurnsMax = 1000;
  idle_turns_ = progressed || !scheduler_->has_work() ? 0 : idle_turns_ + 1;
  TM_CHECK(idle_turns_ < kIdleTurnsMax);
}

void EngineCore::admit() {
  std::vector<AdmissionUnit> units;
  std::vector<std::shared_ptr<RequestState>> aborts;
  std::vector<std::packaged_task<bool()>> tasks;
  {
    const std::lock_guard lock(inbox_.mutex);
    units.swap(inbox_.units);
    aborts.swap(inbox_.aborts);
    tasks.swap(inbox_.tasks);
    inbox_.queued += std::exchange(inbox_.waiting, 0);
  }
  for (AdmissionUnit& unit : units) {
    std::vector<SequenceSpec> specs;
    for (Admission& admission : unit) {
      admission.state->first_sequence_id = next_sequence_id_;
      for (SequenceSpec& spec : admission.specs) {
        spec.id = next_sequence_id_++;
        sequences_.emplace(spec.id, LiveSequence{.state = admission.state, .sample = int64_t{spec.sample_index}});
        if (trace_) {
          trace_->request_queued(spec.id, admission.state->rid, admission.state->submitted.time_since_epoch().count(),
                                 static_cast<int64_t>(spec.prompt->size()));
        }
        specs.push_back(std::move(spec));
      }
    }
    scheduler_->add(std::move(specs));
    // An abort may have come before the request did.
    for (const Admission& admission : unit) {
      if (admission.state->abort_requested) aborts.push_back(admission.state);
    }
  }
  for (const auto& state : aborts) {
    if (state->first_sequence_id == 0) continue;
    for (int64_t i = 0; i < state->num_samples; ++i) {
      scheduler_->abort(state->first_sequence_id + static_cast<uint64_t>(i), "The request was aborted.");
    }
  }
  if (!tasks.empty()) finish_step();  // they may look at anything
  for (std::packaged_task<bool()>& task : tasks) task();
}

bool EngineCore::flush_between_steps() {
  if (scheduler_->flush_cache()) {
    logger_.info("Cache flushed successfully!");
    return true;
  }
  const SchedulerStats stats = scheduler_->stats();
  logger_.warning(fmt::format("Cache not flushed because there are pending requests. #queue-req: {}, #running-req: {}",
                              stats.queue, stats.running));
  return false;
}

// What work throws, where that ends a step's requests only; what breaks an invariant or the device, or runs out of
// memory, ends the engine.
std::optional<std::string> EngineCore::failure_of(const std::function<void()>& work) const {
  try {
    work();
  } catch (const InvariantError&) {
    throw;
  } catch (const DeviceError&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& error) {
    return error.what();
  }
  return std::nullopt;
}

// Launches one step. Commits the one before it, if that is still in flight, else this one itself.
void EngineCore::execute(const Batch& batch) {
  std::optional<ModelRunner::InFlight> launched;
  std::optional<std::string> failure = failure_of([&] { launched = runner_->forward(batch); });
  clock_.end_part(StepClock::kForward);
  finish_step();
  // Edits wait for the forward pass; what has been committed should not.
  const auto has_edit = [](const SamplingRow& row) { return row.logit_edit != nullptr; };
  if (overlap_ && std::ranges::any_of(batch.sampling, has_edit)) {
    publish();
    clock_.end_part(StepClock::kPublish);
  }
  if (!failure) failure = failure_of([&] { runner_->sample(*launched, batch.sampling); });
  if (failure) {
    logger_.error(fmt::format("Step {} failed, its requests end: {}", batch.step, *failure));
    scheduler_->fail(batch.step, "The forward pass failed: " + *failure);
    clock_.end_part(StepClock::kForward);
    return;
  }
  clock_.end_part(overlap_ ? StepClock::kForward : StepClock::kSample);
  in_flight_ = std::move(launched);
  if (!overlap_) finish_step();
}

// Waits for the step in flight, if any, and commits it.
void EngineCore::finish_step() {
  if (!in_flight_) return;
  const StepResult result = runner_->wait(std::move(*in_flight_));
  in_flight_.reset();
  clock_.end_part(StepClock::kSample);
  scheduler_->commit(result);
  clock_.end_part(StepClock::kCommit);
}

bool EngineCore::publish() {
  std::vector<SequenceEvent> events = scheduler_->take_events();
  std::vector<Delta> deltas;
  deltas.reserve(events.size());
  const auto now = std::chrono::steady_clock::now();
  for (SequenceEvent& event : events) {
    const auto found = sequences_.find(event.sequence_id);
    TM_CHECK(found != sequences_.end());
    measure(event, found->second, now);
    const int64_t sample = found->second.sample;
    const std::shared_ptr<RequestState> state = found->second.state;
    if (event.finish) sequences_.erase(found);
    deltas.push_back({.request = state, .sample = sample, .event = std::move(event)});
  }
  const SchedulerStats stats = scheduler_->stats();
  {
    const std::lock_guard lock(stats_mutex_);
    scheduler_stats_ = stats;
    told_metrics_ = metrics_;
  }
  bool room = false;
  {
    const std::lock_guard lock(inbox_.mutex);
    room = stats.queue < inbox_.queued;
    inbox_.queued = stats.queue;
  }
  if (room) inbox_.room.notify_all();
  const bool told = !deltas.empty();
  outputs_.post(std::move(deltas));
  return told;
}

void EngineCore::die(const std::string& message) {
  logger_.error("The engine has stopped: " + message);
  close(Error(ErrorKind::kRuntime, "The engine has stopped after an internal error and takes no more requests: " +
                                       message + " Make a new Engine to go on."));
  tell_the_end();
}

// After the last step: nothing runs or waits, whatever the last step saw.
void EngineCore::tell_the_end() {
  const std::lock_guard lock(stats_mutex_);
  scheduler_stats_.running = scheduler_stats_.queue = 0;
  scheduler_stats_.blocks_free = scheduler_stats_.blocks_total;
  scheduler_stats_.blocks_cached = scheduler_stats_.blocks_pinned = 0;
}

void EngineCore::close(const Error& error) {
  std::vector<std::shared_ptr<RequestState>> states;
  {
    const std::lock_guard lock(registry_mutex_);
    if (!closed_) closed_ = error;
    for (const auto& [rid, state] : registry_) states.push_back(state);
  }
  {
    const std::lock_guard lock(inbox_.mutex);
    inbox_.stopping = true;
    inbox_.units.clear();
    inbox_.aborts.clear();
    inbox_.tasks.clear();  // whoever waits for one sees a broken promise
  }
  inbox_.arrived.notify_all();
  inbox_.room.notify_all();
  // In the order of submission, so that a list's first request tells of the failure.
  std::sort(states.begin(), states.end(), [](const auto& a, const auto& b) { return a->number < b->number; });
  outputs_.post_failure(std::move(states), error);
}

void EngineCore::shutdown() {
  if (shut_down_) return;
  if (outputs_.on_this_thread()) {
    throw Error(ErrorKind::kRuntime, "shutdown() cannot be called from on_output.");
  }
  const std::lock_guard lock(shutdown_mutex_);
  if (shut_down_) return;
  close(Error(ErrorKind::kRuntime, "The engine was shut down."));
  const bool threaded = thread_.joinable();
  if (threaded) thread_.join();
  tell_the_end();
  {
    const std::lock_guard feeders_lock(feeders_mutex_);
    for (Feeder& feeder : feeders_) feeder.thread.join();
    feeders_.clear();
  }
  outputs_.stop();
  if (!threaded) outputs_.drain();
  outputs_.release_tokenizer();
  sequences_.clear();
  in_flight_.reset();
  scheduler_.reset();
  runner_.reset();
  trace_.reset();
  {
    const std::lock_guard registry_lock(registry_mutex_);
    preparer_.reset();
    tokenizer_.reset();
  }
  shut_down_ = true;
}

}  // namespace tokenmill
