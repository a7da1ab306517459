// An engine's beginning, from its parts, and its end.
#include "engine/engine_core.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/check.h"
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
  const int32_t window = window_of_group(model_config_, *args_.context_length);
  const PoolBlocks blocks = make_runner(parts, window);
  make_scheduler(blocks, window);
  if (args_.trace_path) trace_ = std::make_unique<TraceWriter>(*args_.trace_path);
  scheduler_stats_ = scheduler_->stats();
  if (window > 0) {
    logger_.info(fmt::format("Use Sliding window memory pool. full_layer_tokens={}, swa_layer_tokens={}",
                             max_total_num_tokens_, int64_t{blocks.window} * *args_.page_size));
  }
  logger_.info("Memory pool end. avail mem=" + gib_text(runner_->backend().available_memory()) + " GB");
  pool_seconds_ = seconds();
  if (runner_->backend().has_graphs()) {
    warm_up();
    graphs_seconds_ = seconds() - pool_seconds_;
  }
  logger_.info(fmt::format("max_total_num_tokens={}, max_prefill_tokens={}, max_running_requests={}, context_len={}",
                           max_total_num_tokens_, args_.max_prefill_tokens, *args_.max_running_requests,
                           *args_.context_length));
}

// The pool, as large as the options and the memory that is there have it, and what runs over it.
PoolBlocks EngineCore::make_runner(EngineParts& parts, int32_t window) {
  const auto page_size = static_cast<int32_t>(*args_.page_size);
  const auto block_bytes = [&](KvGroup group) {
    return ModelRunner::kv_bytes_per_block(*parts.model, *parts.backend, page_size, window > 0, group);
  };
  const PoolBlocks blocks =
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
  max_total_num_tokens_ = int64_t{blocks.full} * page_size;
  if (!args_.max_running_requests) {
    args_.max_running_requests = choose_running_requests(max_total_num_tokens_, *args_.context_length);
  }
  args_.max_total_tokens = max_total_num_tokens_;
  runner_ =
      std::make_unique<ModelRunner>(std::move(parts.backend), std::move(parts.model),
                                    RunnerOptions{.page_size = page_size,
                                                  .num_blocks = blocks.full,
                                                  .window_blocks = blocks.window,
                                                  .max_tokens_per_step = tokens_per_step(args_, max_total_num_tokens_),
                                                  .max_rows = *args_.max_running_requests,
                                                  .graph_rows_max = args_.cuda_graph_max_bs.value_or(kGraphRowsDefault),
                                                  .use_graphs = !args_.disable_cuda_graph});
  runner_->backend().set_warning_sink([this](const std::string& line) { logger_.warning(line); });
  overlap_ = runner_->backend().overlaps() && !args_.disable_overlap_schedule;
  kv_shape_ = runner_->kv_shape();
  kv_block_bytes_ = runner_->block_bytes();
  return blocks;
}

void EngineCore::make_scheduler(const PoolBlocks& blocks, int32_t window) {
  SchedulerOptions options = scheduler_options(args_, blocks.full, tokenizer_, logger_);
  options.window = window;
  options.window_blocks = blocks.window;
  options.on_first_admission = [this](uint64_t id, double queued_seconds, int64_t cached_tokens) {
    on_first_admission(id, queued_seconds, cached_tokens);
  };
  scheduler_ = std::make_unique<Scheduler>(std::move(options));
}

// What a device's first steps would have to wait for.
void EngineCore::warm_up() {
  runner_->warm_up();
  if (args_.disable_cuda_graph) return;
  if (runner_->graph_rows_max() > 0) {
    logger_.info("Capture cuda graph begin. This can take up to several minutes.");
  } else {
    logger_.info("CUDA graphs are off: this model's rotation depends on a sequence's length (rope scaling 'dynamic').");
  }
  runner_->prepare_graphs(kGraphRowsAtStart);
}

EngineCore::~EngineCore() { shutdown(); }

void EngineCore::start() {
  outputs_.start();
  thread_ = std::thread([this] { run(); });
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
