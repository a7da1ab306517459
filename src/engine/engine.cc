// The public API over EngineCore: every way to generate is one submit with other callbacks.
#include "tokenmill/engine.h"

#include <malloc.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "engine/engine_core.h"
#include "engine/engine_impl.h"
#include "engine/model_loader.h"
#include "engine/pinned_prefix.h"
#include "engine/resolve_args.h"
#include "engine/stream_impl.h"
#include "ops/backend.h"

namespace tokenmill {
namespace {

using Clock = std::chrono::steady_clock;

// Samples that a call will give back; requests that are not valid count as one, submit() rejects them.
int64_t count_samples(const std::vector<Request>& requests) {
  int64_t samples = 0;
  for (const Request& request : requests) samples += std::clamp<int64_t>(request.sampling_params.n, 1, 4096);
  return samples;
}

// Filled on the output thread.
struct Collector {
  std::vector<Output> outputs;
  int64_t unfinished = 0;
  std::promise<std::vector<Output>> promise;
};

std::future<std::vector<Output>> collect(EngineCore& core, std::vector<Request> requests, bool single) {
  auto collector = std::make_shared<Collector>();
  collector->unfinished = count_samples(requests);
  collector->outputs.resize(static_cast<size_t>(collector->unfinished));
  for (Request& request : requests) request.stream = false;
  std::future<std::vector<Output>> future = collector->promise.get_future();
  if (requests.empty()) {
    collector->promise.set_value({});
    return future;
  }
  auto call = std::make_shared<Call>();
  call->on_output = [collector](Output&& output) {
    collector->outputs[static_cast<size_t>(output.index)] = std::move(output);
    if (--collector->unfinished == 0) collector->promise.set_value(std::move(collector->outputs));
    return true;
  };
  call->on_failure = [collector](const Error& error) {
    collector->promise.set_exception(std::make_exception_ptr(error));
  };
  call->fails_with_its_request = single;
  core.submit(std::move(requests), std::move(call), single);
  return future;
}

std::vector<Output> collect_and_wait(EngineCore& core, std::vector<Request> requests, bool single) {
  if (core.on_output_thread()) {
    throw Error(ErrorKind::kRuntime, "generate() cannot wait inside on_output; use submit().");
  }
  return collect(core, std::move(requests), single).get();
}

Stream open_stream(const std::shared_ptr<EngineCore>& core, std::vector<Request> requests, bool single) {
  auto queue = std::make_shared<StreamQueue>();
  queue->unfinished = count_samples(requests);
  for (Request& request : requests) request.stream = true;
  auto call = std::make_shared<Call>();
  call->on_output = [queue](Output&& output) { return queue->push(std::move(output)); };
  call->on_failure = [queue](const Error& error) { queue->fail(error); };
  call->fails_with_its_request = single;
  core->submit(std::move(requests), call, single);
  return Stream(std::make_unique<Stream::Impl>(core, std::move(queue), std::move(call)));
}

void shut_down(EngineCore& core) {
  core.shutdown();
  // Freed pieces of the heaps go back to the system now, not when the process happens to need them.
  Tokenizer::release_freed_memory();
  malloc_trim(0);
}

std::vector<Request> one(Request request) {
  std::vector<Request> requests;
  requests.push_back(std::move(request));
  return requests;
}

std::shared_ptr<const Tokenizer> require_tokenizer(const EngineCore& core) {
  std::shared_ptr<const Tokenizer> tokenizer = core.tokenizer();
  if (tokenizer == nullptr) {
    throw Error(ErrorKind::kValue, "The engine was initialized with skip_tokenizer_init=True and has no tokenizer.");
  }
  return tokenizer;
}

std::shared_ptr<Engine::Impl> load(ServerArgs args, LogSink log_sink, const KeepGoing& keep_going) {
  const auto start = Clock::now();
  args = resolve_server_args(std::move(args));
  LoadTimings timings;
  EngineParts parts;
  {
    const Logger logger(args.log_level, log_sink);
    logger.log(LogLevel::kInfo, "server_args=" + to_string(args), false);
    parts = load_parts(args, logger, keep_going, timings);
  }
  parts.log_sink = std::move(log_sink);
  auto core = std::make_shared<EngineCore>(std::move(args), std::move(parts));
  core->start();
  auto impl = std::make_shared<Engine::Impl>(std::move(core));
  impl->timings = timings;
  impl->start_s = std::chrono::duration<double>(Clock::now() - start).count();
  return impl;
}

std::shared_ptr<Engine::Impl> load_or_throw_error(ServerArgs args, LogSink log_sink, const KeepGoing& keep_going) {
  try {
    return load(std::move(args), std::move(log_sink), keep_going);
  } catch (const Error&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw Error(ErrorKind::kRuntime,
                "Not enough memory to start the engine. Use a smaller or a quantised model, reduce max_total_tokens or "
                "max_running_requests, or raise the memory limit.");
  } catch (const std::exception& error) {
    throw Error(ErrorKind::kRuntime, std::string("The engine could not start: ") + error.what());
  }
}

}  // namespace

Engine::Engine(ServerArgs args, LogSink log_sink, const KeepGoing& keep_going)
    : impl_(load_or_throw_error(std::move(args), std::move(log_sink), keep_going)) {}

Engine::Engine(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}

Engine::~Engine() {
  const std::shared_ptr<EngineCore> core = impl_->core;
  if (core->on_output_thread()) {
    // A callback dropped the engine: its own thread cannot join itself.
    std::thread([core] { shut_down(*core); }).detach();
  } else {
    shutdown();
  }
}

std::string Engine::submit(Request request, OutputCallback on_output, FailureCallback on_failure) {
  auto call = std::make_shared<Call>();
  call->on_output = std::move(on_output);
  call->on_failure = std::move(on_failure);
  call->fails_with_its_request = true;
  return impl_->core->submit(one(std::move(request)), std::move(call), true).front();
}

std::vector<std::string> Engine::submit(std::vector<Request> requests, OutputCallback on_output,
                                        FailureCallback on_failure, const KeepGoing& keep_going) {
  auto call = std::make_shared<Call>();
  call->on_output = std::move(on_output);
  call->on_failure = std::move(on_failure);
  return impl_->core->submit(std::move(requests), std::move(call), /*single=*/false, {}, keep_going);
}

std::vector<Output> Engine::generate(Request request) {
  return collect_and_wait(*impl_->core, one(std::move(request)), true);
}

std::vector<Output> Engine::generate(std::vector<Request> requests) {
  return collect_and_wait(*impl_->core, std::move(requests), false);
}

std::future<std::vector<Output>> Engine::generate_async(std::vector<Request> requests) {
  return collect(*impl_->core, std::move(requests), false);
}

Stream Engine::generate_stream(Request request) { return open_stream(impl_->core, one(std::move(request)), true); }

Stream Engine::generate_stream(std::vector<Request> requests) {
  return open_stream(impl_->core, std::move(requests), false);
}

void Engine::abort(std::string_view rid) { impl_->core->abort(rid); }
void Engine::abort_all() { impl_->core->abort_all(); }
bool Engine::flush_cache() { return impl_->core->flush_cache(); }

PinnedPrefix Engine::pin(Request request) {
  const auto [pin, tokens] = impl_->core->pin(std::move(request));
  return PinnedPrefix(std::make_unique<PinnedPrefix::Impl>(impl_->core, pin, tokens));
}

int64_t Engine::save_prefix(Request request, const std::string& path) {
  return impl_->core->save_prefix(std::move(request), path);
}
int64_t Engine::load_prefix(const std::string& path, const std::optional<std::string>& cache_salt) {
  return impl_->core->load_prefix(path, cache_salt);
}

std::string Engine::prometheus_metrics() const { return impl_->core->prometheus_metrics(); }
std::map<std::string, double> Engine::stats() const { return impl_->core->stats(); }

void Engine::shutdown() { shut_down(*impl_->core); }

std::string Engine::server_info_json() const {
  const EngineCore& core = *impl_->core;
  const ModelConfig& config = core.model_config();
  nlohmann::ordered_json info;
  for (const ServerArgsField& field : server_args_fields()) {
    const bool secret = field.name == "api_key" && core.args().api_key;
    info[std::string(field.name)] =
        secret ? nlohmann::ordered_json("***") : nlohmann::ordered_json::parse(field.get_json(core.args()));
  }
  info["version"] = version();
  info["max_total_num_tokens"] = core.max_total_num_tokens();
  info["internal_states"] = {{{"last_gen_throughput", core.stats().at("last_gen_throughput")}}};
  info["model"] = {{"architecture", config.architecture},
                   {"vocab_size", config.vocab_size},
                   {"num_layers", config.num_layers},
                   {"weight_bytes", core.weight_bytes()},
                   {"kv_bytes_per_token", core.kv_bytes_per_token()}};
  info["backend"] = core.backend_description();
  info["startup"] = {{"open_s", impl_->timings.open_s},
                     {"device_s", impl_->timings.device_s},
                     {"weights_s", impl_->timings.weights_s},
                     {"tokenizer_s", impl_->timings.tokenizer_s},
                     {"pool_s", core.pool_seconds()},
                     {"graphs_s", core.graphs_seconds()},
                     {"total_s", impl_->start_s}};
  return info.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::vector<int32_t> Engine::encode_text(std::string_view text, bool add_special_tokens) const {
  const auto tokenizer = require_tokenizer(*impl_->core);
  return add_special_tokens ? tokenizer->encode_prompt(text) : tokenizer->encode(text, false);
}

std::string Engine::decode_ids(const std::vector<int32_t>& ids, bool skip_special_tokens) const {
  return require_tokenizer(*impl_->core)->decode(ids, skip_special_tokens);
}

std::string Engine::apply_chat_template(const std::string& messages_json, bool add_generation_prompt,
                                        const std::string& kwargs_json) const {
  (void)require_tokenizer(*impl_->core);
  nlohmann::ordered_json kwargs = nlohmann::ordered_json::parse(kwargs_json, nullptr, false);
  if (!kwargs.is_object()) {
    throw Error(ErrorKind::kValue, "kwargs must be a JSON object, got " + kwargs_json + ".");
  }
  if (!kwargs.contains("add_generation_prompt")) kwargs["add_generation_prompt"] = add_generation_prompt;
  return impl_->core->preparer()->apply_chat_template(messages_json, kwargs.dump());
}

std::vector<int32_t> Engine::eos_token_ids() const { return impl_->core->eos_token_ids(); }

std::optional<int32_t> Engine::eos_token_id() const { return impl_->core->eos_token_id(); }

std::optional<int32_t> Engine::bos_token_id() const { return impl_->core->bos_token_id(); }

int64_t Engine::vocab_size() const { return impl_->core->model_config().vocab_size; }
int64_t Engine::context_length() const { return *impl_->core->args().context_length; }
const ServerArgs& Engine::server_args() const { return impl_->core->args(); }

std::string version() { return "0.1.0"; }  // as in CMakeLists.txt

}  // namespace tokenmill
