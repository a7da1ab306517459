#include "engine/output_worker.h"

#include <fmt/format.h>

#include <chrono>
#include <iterator>
#include <limits>
#include <optional>
#include <utility>

#include "base/check.h"
#include "engine/text_repr.h"

namespace tokenmill {

struct SampleOutput {
  std::optional<TextStream> text;
  std::vector<int32_t> pending_ids;  // not yet in `text`
  Output next;                       // what the next chunk tells (cumulative: everything so far)
  int64_t next_chunk_at = 1;         // completion tokens
  bool finished = false;
};

RequestState::RequestState() = default;
RequestState::~RequestState() = default;

namespace {

template <class T>
void move_append(std::vector<T>& to, std::vector<T>& from) {
  to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

OutputWorker::OutputWorker(OutputWorkerOptions options) : options_(std::move(options)) {}

OutputWorker::~OutputWorker() { stop(); }

void OutputWorker::start() {
  thread_ = std::thread([this] { run(); });
}

void OutputWorker::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  arrived_.notify_all();
  taken_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void OutputWorker::push(Item item) {
  {
    const std::lock_guard lock(mutex_);
    items_.push_back(std::move(item));
  }
  arrived_.notify_one();
}

void OutputWorker::post(std::vector<Delta> deltas) {
  if (deltas.empty()) return;
  if (thread_id_.load() != std::thread::id()) {
    std::unique_lock lock(mutex_);
    taken_.wait(lock, [&] { return items_.size() < kOutboxMax || stopping_; });
  }
  post_now(std::move(deltas));
}

void OutputWorker::post_now(std::vector<Delta> deltas) {
  if (deltas.empty()) return;
  push({.deltas = std::move(deltas), .failed = {}, .error = nullptr});
}

void OutputWorker::post_failure(std::vector<std::shared_ptr<RequestState>> requests, const Error& error) {
  if (requests.empty()) return;
  push({.deltas = {}, .failed = std::move(requests), .error = std::make_shared<const Error>(error)});
}

void OutputWorker::run() {
  thread_id_ = std::this_thread::get_id();
  const auto poll = std::chrono::duration<double>(options_.poll_seconds);
  std::unique_lock lock(mutex_);
  while (true) {
    const auto ready = [&] { return !items_.empty() || stopping_; };
    if (options_.poll_seconds > 0) {
      if (!arrived_.wait_for(lock, poll, ready)) {
        lock.unlock();
        options_.on_poll();
        lock.lock();
        continue;
      }
    } else {
      arrived_.wait(lock, ready);
    }
    if (items_.empty()) break;
    Item item = std::move(items_.front());
    items_.pop_front();
    lock.unlock();
    taken_.notify_one();
    handle(item);
    item = {};  // what the callbacks own is let go outside of the lock
    lock.lock();
  }
}

void OutputWorker::drain() {
  std::unique_lock lock(mutex_);
  while (!items_.empty()) {
    Item item = std::move(items_.front());
    items_.pop_front();
    lock.unlock();
    handle(item);
    item = {};
    lock.lock();
  }
}

void OutputWorker::handle(Item& item) {
  for (Delta& delta : item.deltas) handle_delta(delta);
  for (const auto& request : item.failed) handle_failure(*request, *item.error);
}

void OutputWorker::handle_delta(Delta& delta) {
  RequestState& request = *delta.request;
  if (request.samples.empty()) {
    request.samples.resize(static_cast<size_t>(request.num_samples));
    request.unfinished = request.num_samples;
  }
  SampleOutput& out = request.samples[static_cast<size_t>(delta.sample)];
  if (out.finished) return;
  for (const SampledToken& token : delta.event.tokens) {
    if (token.invalid || token.token < 0) continue;
    out.pending_ids.push_back(token.token);
    out.next.output_ids.push_back(token.token);
    if (request.want_logprob) append_logprobs(out, token);
  }
  const bool last = delta.event.finish.has_value();
  if (last) {
    out.finished = true;
    if (--request.unfinished == 0) options_.on_finished(request, *delta.event.finish);
  }
  const bool chunk_due = request.stream && delta.event.completion_tokens >= out.next_chunk_at;
  if (!request.cancelled && (last || chunk_due)) {
    out.next_chunk_at = delta.event.completion_tokens + request.stream_interval;
    tell(delta.request, delta.sample, delta.event);
  }
  if (last) out = SampleOutput{.text = {}, .pending_ids = {}, .next = {}, .next_chunk_at = 1, .finished = true};
}

void OutputWorker::tell(const std::shared_ptr<RequestState>& request, int64_t sample, const SequenceEvent& event) {
  bool wanted = false;
  try {
    Output output = make_output(*request, sample, event);
    if (options_.log_requests && output.finished()) log_finish(*request, output);
    if (event.unsampleable && request->call->fails_with_its_request && request->call->on_failure) {
      tell_failure(*request, Error(ErrorKind::kValue, event.finish->message));
    } else {
      wanted = request->call->on_output(std::move(output));
    }
  } catch (const std::exception& error) {
    options_.logger->error(fmt::format("on_output threw, so request {} is cancelled: {}", request->rid, error.what()));
  } catch (...) {
    options_.logger->error(fmt::format("on_output threw, so request {} is cancelled.", request->rid));
  }
  if (wanted) return;
  request->cancelled = true;
  if (request->unfinished > 0) options_.on_cancel(request);
}

Output OutputWorker::make_output(RequestState& request, int64_t sample, const SequenceEvent& event) {
  SampleOutput& out = request.samples[static_cast<size_t>(sample)];
  out.next.text += next_text(request, out, event);
  MetaInfo& meta = out.next.meta_info;
  meta.id = request.rid;
  meta.finish_reason = event.finish;
  meta.prompt_tokens = event.prompt_tokens;
  meta.completion_tokens = event.completion_tokens;
  meta.cached_tokens = event.cached_tokens;
  meta.num_retractions = event.num_retractions;
  meta.e2e_latency = seconds_since(request.submitted);
  out.next.index = request.first_index + sample;
  out.next.sample = sample;
  if (request.return_prompt_token_ids && request.prompt) out.next.prompt_token_ids = *request.prompt;
  if (event.finish || options_.incremental) return std::exchange(out.next, Output{});
  return out.next;
}

std::string OutputWorker::next_text(RequestState& request, SampleOutput& out, const SequenceEvent& event) {
  if (!options_.tokenizer || !request.prompt) return "";
  if (!out.text) out.text.emplace(options_.tokenizer, *request.prompt, request.text_options);
  std::vector<int32_t> ids = std::exchange(out.pending_ids, {});
  if (!event.finish) return out.text->append(ids, event.held_bytes);
  // The token that ended the output is among its ids but, unless asked for, not in its text.
  const bool stop_token = std::holds_alternative<int64_t>(event.finish->matched);
  if (stop_token && !request.no_stop_trim && !ids.empty()) ids.pop_back();
  std::string text = out.text->append(ids, event.text_end >= 0 ? std::numeric_limits<int64_t>::max() / 2 : 0);
  return text + out.text->finish(event.text_end);
}

void OutputWorker::append_logprobs(SampleOutput& out, const SampledToken& token) const {
  MetaInfo& meta = out.next.meta_info;
  meta.output_token_logprobs.push_back(token_logprob(token.token, token.logprob));
  const auto list = [&](const std::vector<std::pair<int32_t, float>>& pairs) {
    std::vector<TokenLogprob> logprobs;
    logprobs.reserve(pairs.size());
    for (const auto& [id, logprob] : pairs) logprobs.push_back(token_logprob(id, logprob));
    return logprobs;
  };
  if (!token.top_logprobs.empty()) meta.output_top_logprobs.push_back(list(token.top_logprobs));
  if (!token.ids_logprobs.empty()) meta.output_token_ids_logprobs.push_back(list(token.ids_logprobs));
}

TokenLogprob OutputWorker::token_logprob(int32_t id, float logprob) const {
  TokenLogprob result{.logprob = logprob, .token_id = id, .text = {}};
  if (options_.tokenizer) result.text = options_.tokenizer->decode(std::span(&id, 1), false);
  return result;
}

void OutputWorker::handle_failure(RequestState& request, const Error& error) {
  if (!request.samples.empty() && request.unfinished == 0) return;
  // Before the first delta the prompt may still be in the making on a caller's thread.
  const bool prompt_known = !request.samples.empty();
  if (request.samples.empty()) request.samples.resize(static_cast<size_t>(request.num_samples));
  FinishReason reason{.type = FinishReason::Type::kAbort, .length = 0, .matched = {}, .message = error.what()};
  request.unfinished = 0;
  options_.on_finished(request, reason);
  const bool told_as_error = request.call->on_failure != nullptr;
  if (told_as_error) tell_failure(request, error);
  for (size_t i = 0; i < request.samples.size(); ++i) {
    SampleOutput& out = request.samples[i];
    if (std::exchange(out.finished, true) || told_as_error || request.cancelled) continue;
    Output output;
    output.index = request.first_index + static_cast<int64_t>(i);
    output.sample = static_cast<int64_t>(i);
    output.meta_info.id = request.rid;
    output.meta_info.finish_reason = reason;
    output.meta_info.prompt_tokens = prompt_known && request.prompt ? static_cast<int64_t>(request.prompt->size()) : 0;
    output.meta_info.e2e_latency = seconds_since(request.submitted);
    try {
      if (!request.call->on_output(std::move(output))) request.cancelled = true;
    } catch (...) {
      request.cancelled = true;  // the engine has ended already; there is nothing left to cancel
    }
  }
}

void OutputWorker::tell_failure(const RequestState& request, const Error& error) const {
  if (std::exchange(request.call->failure_told, true)) return;
  try {
    request.call->on_failure(error);
  } catch (...) {
    options_.logger->error(fmt::format("on_failure threw for request {}.", request.rid));
  }
}

void OutputWorker::log_finish(const RequestState& request, const Output& output) const {
  const FinishReason& reason = *output.meta_info.finish_reason;
  static constexpr const char* kNames[] = {"length", "stop", "abort"};
  options_.logger->info(
      fmt::format("Finish: rid={}, index={}, finish_reason={}{}{}, prompt_tokens={}, "
                  "completion_tokens={}, cached_tokens={}, e2e_latency={:.3f}, text={}",
                  request.rid, output.index, kNames[static_cast<int>(reason.type)], reason.message.empty() ? "" : ": ",
                  reason.message, output.meta_info.prompt_tokens, output.meta_info.completion_tokens,
                  output.meta_info.cached_tokens, output.meta_info.e2e_latency, python_repr(output.text)));
}

}  // namespace tokenmill
