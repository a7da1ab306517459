// The callers' side of EngineCore: submit, abort, flush, stats. Any thread.
#include <fmt/format.h>

#include <algorithm>
#include <unordered_set>
#include <utility>

#include "engine/engine_core.h"
#include "engine/text_repr.h"

namespace tokenmill {
namespace {

// Below this, threads cost more than tokenising does.
constexpr size_t kPromptsPerThread = 64;
// A feeder tokenises and hands over this many prompts at a time after the first window.
constexpr size_t kFeedPrompts = 256;

Delta abort_delta(const std::shared_ptr<RequestState>& state, int64_t sample, const std::string& message) {
  Delta delta{.request = state, .sample = sample, .event = {}};
  delta.event.finish = FinishReason{.type = FinishReason::Type::kAbort, .length = 0, .matched = {}, .message = message};
  delta.event.prompt_tokens = state->prompt ? static_cast<int64_t>(state->prompt->size()) : 0;
  return delta;
}

void append_abort(const std::shared_ptr<RequestState>& state, const std::string& message, std::vector<Delta>& deltas) {
  for (int64_t i = 0; i < state->num_samples; ++i) deltas.push_back(abort_delta(state, i, message));
}

}  // namespace

void EngineCore::check_open() const {
  const std::lock_guard lock(registry_mutex_);
  if (closed_) throw *closed_;
}

std::vector<std::string> EngineCore::submit(std::vector<Request> requests, std::shared_ptr<Call> call, bool single,
                                            PinOrder pin, const KeepGoing& keep_going) {
  check_open();
  const std::shared_ptr<const RequestPreparer> preparer = this->preparer();  // lives on if shutdown() comes meanwhile
  for (const Request& request : requests) preparer->check(request);
  if (requests.empty()) return {};
  uint64_t number = 0;
  {
    const std::lock_guard lock(registry_mutex_);
    number = next_number_;
    next_number_ += requests.size();
  }
  const auto now = std::chrono::steady_clock::now();
  std::vector<std::shared_ptr<RequestState>> states;
  states.reserve(requests.size());
  int64_t index = 0;
  for (const Request& request : requests) {
    states.push_back(preparer->make_state(request, number++));
    states.back()->call = call;
    states.back()->pin = pin;
    states.back()->first_index = index;
    states.back()->submitted = now;
    index += request.sampling_params.n;
  }
  std::vector<std::string> ids = register_states(states);
  if (args_.log_requests) {
    for (size_t i = 0; i < requests.size(); ++i) log_receive(requests[i], *states[i]);
  }
  if (single) {
    submit_single(*preparer, requests.front(), states.front());
  } else if (requests.size() <= kWindowPrompts) {
    submit_unit(*preparer, requests, states, keep_going);
  } else {
    start_feeder(preparer, std::move(requests), std::move(states));
  }
  return ids;
}

std::vector<std::string> EngineCore::register_states(const std::vector<std::shared_ptr<RequestState>>& states) {
  std::vector<std::string> ids;
  ids.reserve(states.size());
  const std::lock_guard lock(registry_mutex_);
  if (closed_) throw *closed_;
  std::unordered_set<std::string> own;
  for (const auto& state : states) {
    if (state->rid.empty()) continue;
    if (registry_.contains(state->rid) || !own.insert(state->rid).second) {
      throw Error(ErrorKind::kValue, "Duplicate request ID detected: " + state->rid);
    }
  }
  for (const auto& state : states) {
    // An id of ours steps aside for the caller's own, in this list or running.
    while (state->rid.empty()) {
      std::string rid = "tm-" + std::to_string(next_rid_++);
      if (!registry_.contains(rid) && !own.contains(rid)) state->rid = std::move(rid);
    }
  }
  for (const auto& state : states) {
    registry_.emplace(state->rid, state);
    ids.push_back(state->rid);
  }
  num_requests_ += static_cast<int64_t>(states.size());
  return ids;
}

void EngineCore::forget(const RequestState& state) {
  const std::lock_guard lock(registry_mutex_);
  registry_.erase(state.rid);
}

void EngineCore::submit_single(const RequestPreparer& preparer, const Request& request,
                               const std::shared_ptr<RequestState>& state) {
  try {
    AdmissionUnit unit;
    unit.push_back({.state = state, .specs = preparer.prepare(request, *state)});
    std::vector<Delta> rejected;
    enqueue(std::move(unit), rejected);
    if (!rejected.empty()) throw Error(ErrorKind::kRuntime, rejected.front().event.finish->message);
  } catch (...) {
    ++num_aborted_;
    forget(*state);
    throw;
  }
}

void EngineCore::submit_unit(const RequestPreparer& preparer, const std::vector<Request>& requests,
                             const std::vector<std::shared_ptr<RequestState>>& states, const KeepGoing& keep_going) {
  AdmissionUnit unit;
  std::vector<Delta> errors;
  if (!prepare_range(preparer, requests, states, 0, requests.size(), keep_going, unit, errors)) {
    for (const auto& state : states) forget(*state);
    num_aborted_ += static_cast<int64_t>(states.size());
    throw Error(ErrorKind::kRuntime, "The call was stopped before its prompts were tokenised.");
  }
  enqueue(std::move(unit), errors);
  outputs_.post_now(std::move(errors));
}

// Tokenises [begin, end), on several threads where it pays; the results are in input order. False: keep_going, which
// may be null, ended it.
bool EngineCore::prepare_range(const RequestPreparer& preparer, const std::vector<Request>& requests,
                               const std::vector<std::shared_ptr<RequestState>>& states, size_t begin, size_t end,
                               const KeepGoing& keep_going, AdmissionUnit& unit, std::vector<Delta>& errors) const {
  const size_t count = end - begin;
  std::vector<Admission> prepared(count);
  std::vector<std::string> messages(count);
  std::atomic<size_t> next{0};
  std::atomic<bool> stopped{false};
  const auto work = [&](bool asks) {
    for (size_t i = next++; i < count && !stopped; i = next++) {
      if (asks && keep_going && !keep_going()) stopped = true;
      const auto& state = states[begin + i];
      if (state->abort_requested) {
        messages[i] = "The request was aborted.";
        continue;
      }
      try {
        prepared[i] = {.state = state, .specs = preparer.prepare(requests[begin + i], *state)};
      } catch (const std::exception& error) {
        messages[i] = error.what();
      }
    }
  };
  const size_t threads = std::clamp<size_t>(count / kPromptsPerThread, 1, static_cast<size_t>(*args_.num_threads));
  std::vector<std::thread> helpers;
  for (size_t i = 1; i < threads; ++i) helpers.emplace_back(work, false);
  work(true);
  for (std::thread& helper : helpers) helper.join();
  if (stopped) return false;
  for (size_t i = 0; i < count; ++i) {
    if (prepared[i].state) {
      unit.push_back(std::move(prepared[i]));
    } else {
      append_abort(states[begin + i], messages[i], errors);
    }
  }
  return true;
}

int64_t EngineCore::queue_limit() const { return *args_.max_queued_requests; }

// Hands a unit to the engine thread; what the queue has no room for is rejected. False when the engine has closed.
bool EngineCore::enqueue(AdmissionUnit unit, std::vector<Delta>& rejected) {
  {
    const std::lock_guard lock(inbox_.mutex);
    if (inbox_.stopping) return false;
    const int64_t room = std::max<int64_t>(0, queue_limit() - inbox_.waiting - inbox_.queued);
    for (size_t i = static_cast<size_t>(room); i < unit.size(); ++i) {
      append_abort(unit[i].state, kQueueFull, rejected);
    }
    if (static_cast<int64_t>(unit.size()) > room) unit.resize(static_cast<size_t>(room));
    if (unit.empty()) return true;
    inbox_.waiting += static_cast<int64_t>(unit.size());
    inbox_.units.push_back(std::move(unit));
  }
  inbox_.arrived.notify_one();
  return true;
}

void EngineCore::wait_for_room() {
  std::unique_lock lock(inbox_.mutex);
  inbox_.room.wait(lock, [&] { return inbox_.stopping || inbox_.waiting + inbox_.queued < queue_limit(); });
}

void EngineCore::start_feeder(std::shared_ptr<const RequestPreparer> preparer, std::vector<Request> requests,
                              std::vector<std::shared_ptr<RequestState>> states) {
  const std::lock_guard lock(feeders_mutex_);
  for (auto feeder = feeders_.begin(); feeder != feeders_.end();) {
    if (feeder->done) feeder->thread.join();
    feeder = feeder->done ? feeders_.erase(feeder) : std::next(feeder);
  }
  {
    // shutdown() joins the feeders it finds, after closing.
    const std::lock_guard inbox_lock(inbox_.mutex);
    if (inbox_.stopping) return;
  }
  Feeder& feeder = feeders_.emplace_back();
  feeder.thread = std::thread([this, &feeder, preparer = std::move(preparer), requests = std::move(requests),
                               states = std::move(states)]() mutable {
    feed(*preparer, std::move(requests), std::move(states));
    preparer.reset();
    feeder.done = true;
  });
}

// Keeps up to a window of the list waiting in the scheduler, until all of it went in.
void EngineCore::feed(const RequestPreparer& preparer, std::vector<Request> requests,
                      std::vector<std::shared_ptr<RequestState>> states) {
  const auto window = std::min(static_cast<int64_t>(kWindowPrompts), queue_limit());
  for (size_t begin = 0; begin < requests.size();) {
    const auto wanted = static_cast<int64_t>(begin == 0 ? static_cast<size_t>(window)
                                                        : std::min<size_t>(kFeedPrompts, static_cast<size_t>(window)));
    {
      std::unique_lock lock(inbox_.mutex);
      inbox_.room.wait(lock, [&] { return inbox_.stopping || inbox_.waiting + inbox_.queued + wanted <= window; });
      if (inbox_.stopping) return;
    }
    const size_t end = std::min(requests.size(), begin + static_cast<size_t>(wanted));
    AdmissionUnit unit;
    std::vector<Delta> errors;
    prepare_range(preparer, requests, states, begin, end, nullptr, unit, errors);
    for (size_t i = begin; i < end; ++i) {
      requests[i] = {};
      states[i].reset();
    }
    if (!enqueue(std::move(unit), errors)) return;
    outputs_.post_now(std::move(errors));
    begin = end;
  }
}

void EngineCore::request_abort(const std::shared_ptr<RequestState>& state) {
  state->abort_requested = true;
  {
    const std::lock_guard lock(inbox_.mutex);
    if (inbox_.stopping) return;
    inbox_.aborts.push_back(state);
  }
  inbox_.arrived.notify_one();
}

void EngineCore::abort(std::string_view rid) {
  std::shared_ptr<RequestState> state;
  {
    const std::lock_guard lock(registry_mutex_);
    const auto found = registry_.find(std::string(rid));
    if (found == registry_.end()) return;
    state = found->second;
  }
  request_abort(state);
}

template <class Wanted>
void EngineCore::abort_where(Wanted wanted) {
  std::vector<std::shared_ptr<RequestState>> states;
  {
    const std::lock_guard lock(registry_mutex_);
    for (const auto& [rid, state] : registry_) {
      if (wanted(*state)) states.push_back(state);
    }
  }
  for (const auto& state : states) request_abort(state);
}

void EngineCore::abort_all() {
  abort_where([](const RequestState&) { return true; });
}

void EngineCore::abort_call(const Call& call) {
  abort_where([&](const RequestState& state) { return state.call.get() == &call; });
}

bool EngineCore::flush_cache() {
  if (outputs_.on_this_thread()) {
    throw Error(ErrorKind::kRuntime, "flush_cache() cannot be called from on_output.");
  }
  return ask([this] { return flush_between_steps(); });
}

void EngineCore::check_integrity() {
  ask([this] {
    scheduler_->check_integrity();
    return true;
  });
}

// Has the engine thread run a task between two steps, and waits for what it returns or throws.
bool EngineCore::ask(std::function<bool()> task) {
  // stats() of a caller that was answered must not be those of before.
  const auto work = [this, task = std::move(task)] {
    const bool result = task();
    const SchedulerStats stats = scheduler_->stats();
    const std::lock_guard lock(stats_mutex_);
    scheduler_stats_ = stats;
    return result;
  };
  std::future<bool> answer;
  {
    const std::lock_guard lock(inbox_.mutex);
    if (!inbox_.stopping) answer = inbox_.tasks.emplace_back(work).get_future();
  }
  if (!answer.valid()) {
    check_open();
    throw Error(ErrorKind::kRuntime, "The engine was shut down.");
  }
  inbox_.arrived.notify_one();
  if (!thread_.joinable()) admit();  // driven by hand
  try {
    return answer.get();
  } catch (const std::future_error&) {  // the engine ended before it came to it
    check_open();
    throw Error(ErrorKind::kRuntime, "The engine was shut down.");
  }
}

std::shared_ptr<const Tokenizer> EngineCore::tokenizer() const {
  const std::lock_guard lock(registry_mutex_);
  if (!preparer_) throw *closed_;
  return tokenizer_;
}

std::shared_ptr<const RequestPreparer> EngineCore::preparer() const {
  const std::lock_guard lock(registry_mutex_);
  if (!preparer_) throw *closed_;
  return preparer_;
}

void EngineCore::log_receive(const Request& request, const RequestState& state) const {
  const std::string input = request.prompt          ? "prompt=" + python_repr(*request.prompt)
                            : request.messages_json ? "messages=" + *request.messages_json
                                                    : fmt::format("input_ids=[{} ids]", request.input_ids->size());
  const SamplingParams& params = request.sampling_params;
  logger_.info(fmt::format("Receive: rid={}, {}, max_new_tokens={}, temperature={}, top_p={}, n={}", state.rid, input,
                           python_repr(params.max_new_tokens), python_repr(params.temperature),
                           python_repr(params.top_p), params.n));
}

}  // namespace tokenmill
