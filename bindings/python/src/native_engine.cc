#include "native_engine.h"

#include <algorithm>
#include <utility>

namespace tokenmill::python {
namespace {

void set_prompt(Request& request, PromptKind kind, nb::handle prompt) {
  switch (kind) {
    case PromptKind::kText:
      if (!PyUnicode_Check(prompt.ptr())) {
        throw Error(ErrorKind::kType,
                    std::string("prompt must be str, got ") + nb::type_name(prompt.type()).c_str() + ".");
      }
      request.prompt = to_utf8(prompt);
      return;
    case PromptKind::kIds:
      request.input_ids = to_token_ids("input_ids", prompt);
      return;
    case PromptKind::kMessages:
      request.messages_json = to_utf8(prompt);
      return;
  }
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
  if (getpid() != pid_) return;
  state_->dropped = true;
  if (const std::shared_ptr<Engine> engine = engine_.lock()) {
    for (const std::string& id : ids_) engine->abort(id);
  }
}

NativeEngine::NativeEngine(ServerArgs args, std::shared_ptr<LogQueue> log) : pid_(getpid()) {
  LogSink sink = [log = std::move(log)](LogLevel level, const std::string& line) { log->put(level, line); };
  const nb::gil_scoped_release release;
  engine_ = std::make_shared<Engine>(std::move(args), std::move(sink));
}

NativeEngine::~NativeEngine() {
  if (getpid() != pid_) {
    // A child: its copy of the engine has no threads to join and locks that nobody will open. It is left as it is.
    new std::shared_ptr<Engine>(std::move(engine_));
    return;
  }
  const nb::gil_scoped_release release;
  engine_.reset();
}

Engine& NativeEngine::use() const {
  require_process(pid_);
  return *engine_;
}

void NativeEngine::shutdown() {
  if (getpid() != pid_) return;
  const nb::gil_scoped_release release;
  engine_->shutdown();
}

NativeCall NativeEngine::submit(std::shared_ptr<Mailbox> mailbox, const Submission& submission, nb::list prompts,
                                nb::list options, nb::object rids) {
  Engine& engine = use();
  const size_t count = prompts.size();
  std::vector<Request> requests;
  requests.reserve(count);
  bool with_logprobs = false;
  for (size_t i = 0; i < count; ++i) {
    const auto& shared = nb::cast<const RequestOptions&>(options[options.size() == 1 ? 0 : i]);
    Request& request = requests.emplace_back(shared.request);
    set_prompt(request, submission.kind, prompts[i]);
    request.stream = submission.stream;
    with_logprobs |= request.return_logprob;
    if (!rids.is_none() && !nb::object(rids[i]).is_none()) request.rid = to_utf8(rids[i]);
  }
  auto state = std::make_shared<NativeCall::State>();
  const int64_t call = submission.call;
  const bool with_index = submission.stream && !submission.single;
  OutputCallback on_output = [mailbox, state, call, with_index, with_logprobs](Output&& output) {
    if (state->dropped) return false;
    mailbox->put({call, with_index, with_logprobs, std::move(output), std::nullopt});
    return true;
  };
  FailureCallback on_failure = [mailbox, call](const Error& error) {
    mailbox->put({call, false, false, std::nullopt, error});
  };
  std::vector<std::string> ids;
  {
    const nb::gil_scoped_release release;
    if (submission.single) {
      ids.push_back(engine.submit(std::move(requests.front()), std::move(on_output), std::move(on_failure)));
    } else {
      ids = engine.submit(std::move(requests), std::move(on_output), std::move(on_failure));
    }
  }
  return NativeCall(engine_, std::move(state), std::move(ids));
}

}  // namespace tokenmill::python
