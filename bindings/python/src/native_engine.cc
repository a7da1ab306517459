#include "native_engine.h"

#include <atomic>
#include <chrono>
#include <optional>
#include <utility>

namespace tokenmill::python {
namespace {

// position: in its list; -1: alone.
void set_prompt(Request& request, PromptKind kind, nb::handle prompt, int64_t position) {
  const auto place = [position](const char* what) {
    return position < 0 ? "" : " of the " + std::string(what) + " at position " + std::to_string(position);
  };
  switch (kind) {
    case PromptKind::kText:
      request.prompt = to_utf8("prompt", prompt, place("prompt"));
      return;
    case PromptKind::kIds:
      request.input_ids = to_token_ids("input_ids", prompt);
      return;
    case PromptKind::kMessages:
      request.messages_json = to_utf8("messages", prompt, " of the JSON" + place("conversation"));
      return;
  }
}

// One call on its way into the engine, on whichever thread; without the GIL.
struct PendingCall {
  std::shared_ptr<Engine> engine;
  std::shared_ptr<const std::atomic<bool>> closing;
  std::shared_ptr<Mailbox> mailbox;
  std::shared_ptr<NativeCall::State> state;
  Submission submission;
  bool with_logprobs = false;
  std::vector<Request> requests;

  // Throws Error.
  void submit() {
    const int64_t call = submission.call;
    const bool is_list = !submission.single || requests.front().sampling_params.n > 1;
    const bool with_index = submission.stream && is_list;
    OutputCallback on_output = [mailbox = mailbox, state = state, call, with_index,
                                with_logprobs = with_logprobs](Output&& output) {
      if (output.finished()) --state->unfinished;
      if (state->dropped) return false;
      mailbox->put({call, with_index, with_logprobs, std::move(output), std::nullopt});
      return true;
    };
    FailureCallback on_failure = [mailbox = mailbox, state = state, call](const Error& error) {
      state->unfinished = 0;
      mailbox->put(Mail::failed(call, error));
    };
    std::vector<std::string> ids;
    if (submission.single) {
      ids.push_back(engine->submit(std::move(requests.front()), std::move(on_output), std::move(on_failure)));
    } else {
      const KeepGoing keep_going = [this] { return !state->dropped && !*closing; };
      ids = engine->submit(std::move(requests), std::move(on_output), std::move(on_failure), keep_going);
    }
    const std::lock_guard lock(state->mutex);
    state->ids = std::move(ids);
    if (!state->dropped) return;
    for (const std::string& id : state->ids) engine->abort(id);
  }

  void submit_by_mail() {
    if (state->dropped) return;
    try {
      submit();
      if (submission.stream) mailbox->put(Mail::taken(submission.call));
    } catch (const Error& error) {
      if (*closing) {
        mailbox->put(Mail::failed(submission.call, Error(ErrorKind::kRuntime, "The engine was shut down.")));
      } else {
        mailbox->put(Mail::failed(submission.call, error));
      }
    } catch (const std::exception& error) {
      mailbox->put(Mail::failed(submission.call, Error(ErrorKind::kRuntime, error.what())));
    }
  }
};

// A load asks Python for signals this often, a list of prompts after so many.
constexpr std::chrono::milliseconds kSignalPeriod(50);
constexpr size_t kPromptsPerLook = 1024;
// Tokenised within milliseconds.
constexpr size_t kShortTextBytes = 4096;

std::string pin_rid() {
  static std::atomic<uint64_t> number{0};
  return "pin-" + std::to_string(number++);
}

}  // namespace

void require_process(pid_t pid) {
  if (getpid() == pid) return;
  throw Error(
      ErrorKind::kRuntime,
      "This engine belongs to the process that made it: its threads do not survive fork(). Make a new Engine in "
      "the child, or start children with the 'spawn' method.");
}

void NativeCall::abort() {
  if (!state_ || getpid() != pid_ || state_->unfinished == 0) return;
  const nb::gil_scoped_release release;
  state_->dropped = true;
  const std::shared_ptr<Engine> engine = engine_.lock();
  if (!engine) return;
  const std::lock_guard lock(state_->mutex);
  for (const std::string& id : state_->ids) engine->abort(id);
}

NativeEngine::NativeEngine(ServerArgs args, std::shared_ptr<LogQueue> log) : pid_(getpid()) {
  LogSink sink = [log = std::move(log)](LogLevel level, const std::string& line) { log->put(level, line); };
  std::optional<nb::python_error> interrupt;
  auto looked = std::chrono::steady_clock::now();
  const KeepGoing keep_going = [&] {
    // Another thread may make the GIL a matter of milliseconds: not for every tensor.
    const auto now = std::chrono::steady_clock::now();
    if (interrupt || now - looked < kSignalPeriod) return !interrupt;
    looked = now;
    const nb::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) interrupt.emplace();
    return !interrupt;
  };
  try {
    const nb::gil_scoped_release release;
    engine_ = std::make_shared<Engine>(std::move(args), std::move(sink), keep_going);
  } catch (const Error&) {
    if (!interrupt) throw;
    interrupt->restore();
    throw nb::python_error();
  }
}

NativeEngine::~NativeEngine() {
  if (getpid() != pid_) {
    // A child: its copy of the engine has no threads to join and locks that nobody will open. It is left as it is.
    new std::shared_ptr<Engine>(std::move(engine_));
    (void)submitter_.release();
    (void)aside_.release();
    return;
  }
  const nb::gil_scoped_release release;
  *closing_ = true;
  submitter_.reset();
  aside_.reset();
  engine_.reset();
}

Engine& NativeEngine::use() const {
  require_process(pid_);
  return *engine_;
}

void NativeEngine::shutdown() {
  if (getpid() != pid_) return;
  const nb::gil_scoped_release release;
  *closing_ = true;
  engine_->shutdown();
  submitter_->stop();
  aside_->join();
}

NativeCall NativeEngine::submit(std::shared_ptr<Mailbox> mailbox, const Submission& submission, nb::list prompts,
                                nb::list options, nb::object rids) {
  (void)use();
  const size_t count = prompts.size();
  std::vector<Request> requests;
  requests.reserve(count);
  bool with_logprobs = false;
  for (size_t i = 0; i < count; ++i) {
    if (i % kPromptsPerLook == 0 && PyErr_CheckSignals() != 0) throw nb::python_error();
    const auto& shared = nb::cast<const RequestOptions&>(options[options.size() == 1 ? 0 : i]);
    Request& request = requests.emplace_back(shared.request);
    set_prompt(request, submission.kind, prompts[i],
               submission.single ? -1 : submission.first_position + static_cast<int64_t>(i));
    request.stream = submission.stream;
    with_logprobs |= request.return_logprob;
    if (!rids.is_none() && !nb::object(rids[i]).is_none()) request.rid = to_utf8("rid", rids[i]);
  }
  auto state = std::make_shared<NativeCall::State>();
  for (const Request& request : requests) state->unfinished += request.sampling_params.n;
  auto pending = std::make_shared<PendingCall>(PendingCall{.engine = engine_,
                                                           .closing = closing_,
                                                           .mailbox = std::move(mailbox),
                                                           .state = state,
                                                           .submission = submission,
                                                           .with_logprobs = with_logprobs,
                                                           .requests = std::move(requests)});
  {
    const nb::gil_scoped_release release;
    if (submission.later) {
      submitter_->add([pending = std::move(pending)] { pending->submit_by_mail(); });
    } else {
      pending->submit();
      pending.reset();
    }
  }
  return {engine_, std::move(state)};
}

void NativePin::release() {
  if (!prefix_) return;
  if (getpid() != pid_) {  // a child's copy: the lock inside may stay closed for ever
    (void)prefix_.release();
    return;
  }
  const nb::gil_scoped_release release;
  prefix_.reset();
}

// Runs `work` on a request while this thread looks for signals; Ctrl-C aborts the request.
template <class Work>
auto NativeEngine::run_held(PromptKind kind, nb::object prompt, const RequestOptions& options, Work work) {
  (void)use();
  Request request = options.request;
  set_prompt(request, kind, prompt, -1);
  const std::string rid = pin_rid();
  request.rid = rid;
  return aside_->run(
      [engine = engine_, work = std::move(work), request = std::move(request)] { return work(*engine, request); },
      [this, &rid] { engine_->abort(rid); });
}

std::vector<int32_t> NativeEngine::encode_text(nb::object object, bool add_special_tokens) {
  (void)use();
  std::string text = to_utf8("text", object);
  if (text.size() <= kShortTextBytes) {
    const nb::gil_scoped_release release;
    return engine_->encode_text(text, add_special_tokens);
  }
  return aside_->run([engine = engine_, text = std::move(text),
                      add_special_tokens] { return engine->encode_text(text, add_special_tokens); },
                     [] {});
}

NativePin NativeEngine::pin(PromptKind kind, nb::object prompt, const RequestOptions& options) {
  return NativePin(run_held(kind, std::move(prompt), options,
                            [](Engine& engine, const Request& request) { return engine.pin(request); }));
}

int64_t NativeEngine::save_prefix(PromptKind kind, nb::object prompt, const RequestOptions& options,
                                  const std::string& path) {
  return run_held(kind, std::move(prompt), options,
                  [path](Engine& engine, const Request& request) { return engine.save_prefix(request, path); });
}

}  // namespace tokenmill::python
