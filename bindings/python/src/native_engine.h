// The engine as the Python package uses it: one submit into a mailbox; all else is written in Python over that.
#pragma once

#include <nanobind/nanobind.h>
#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "convert.h"
#include "log_queue.h"
#include "mailbox.h"
#include "tokenmill/engine.h"

namespace tokenmill::python {

// Throws Error(kRuntime) in another process than the given one: threads do not survive fork().
void require_process(pid_t pid);

// Python's own hold of what the engine's threads share. nanobind would tie a bare shared_ptr to the Python object, and
// the last of the engine's copies would then need the GIL to go.
// get() throws Error(kRuntime) in a child process, where the lock inside may stay closed for ever.
template <class T>
class Shared {
 public:
  explicit Shared(std::shared_ptr<T> inner) : inner_(std::move(inner)), pid_(getpid()) {}
  const std::shared_ptr<T>& get() const {
    require_process(pid_);
    return inner_;
  }

 private:
  std::shared_ptr<T> inner_;
  pid_t pid_;
};

// What a request is made of apart from its prompt; one may serve a whole list.
struct RequestOptions {
  Request request;
};

enum class PromptKind { kText = 0, kIds = 1, kMessages = 2 };

// One submitted call. Dropping it does nothing; abort() ends what still runs of it.
class NativeCall {
 public:
  struct State {
    std::atomic<bool> dropped{false};
  };
  NativeCall(std::weak_ptr<Engine> engine, std::shared_ptr<State> state, std::vector<std::string> ids)
      : engine_(std::move(engine)), state_(std::move(state)), ids_(std::move(ids)), pid_(getpid()) {}
  const std::vector<std::string>& ids() const { return ids_; }
  void abort();  // call it without the GIL

 private:
  std::weak_ptr<Engine> engine_;
  std::shared_ptr<State> state_;
  std::vector<std::string> ids_;
  pid_t pid_;  // a child's copy has nothing to end
};

struct Submission {
  int64_t call = 0;
  PromptKind kind = PromptKind::kText;
  bool stream = false, single = false;
};

class NativeEngine {
 public:
  // Loads the model; releases the GIL meanwhile.
  NativeEngine(ServerArgs args, std::shared_ptr<LogQueue> log);
  ~NativeEngine();
  NativeEngine(const NativeEngine&) = delete;
  NativeEngine& operator=(const NativeEngine&) = delete;

  Engine& use() const;  // throws in a child process
  void shutdown();

  // prompts: str, list of int or JSON text, as the kind says; options: one for all, or one a prompt; rids: None or a
  // list of str and None.
  NativeCall submit(std::shared_ptr<Mailbox> mailbox, const Submission& submission, nb::list prompts, nb::list options,
                    nb::object rids);

 private:
  std::shared_ptr<Engine> engine_;
  pid_t pid_;
};

}  // namespace tokenmill::python
