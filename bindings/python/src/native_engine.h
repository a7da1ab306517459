// The engine as the Python package uses it: one submit into a mailbox; all else is written in Python over that.
#pragma once

#include <nanobind/nanobind.h>
#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "aside.h"
#include "convert.h"
#include "log_queue.h"
#include "mailbox.h"
#include "submitter.h"
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

// One call, submitted or about to be. abort(), or its end (Ctrl-C may come before anybody holds it), ends what still
// runs of it.
class NativeCall {
 public:
  struct State {
    std::atomic<bool> dropped{false};
    std::atomic<int64_t> unfinished{0};  // samples; ids may be others' once all have finished
    std::mutex mutex;
    std::vector<std::string> ids;  // under mutex; empty until submitted
  };
  NativeCall(std::weak_ptr<Engine> engine, std::shared_ptr<State> state)
      : engine_(std::move(engine)), state_(std::move(state)), pid_(getpid()) {}
  NativeCall(NativeCall&&) = default;
  ~NativeCall() { abort(); }
  void abort();  // with the GIL

 private:
  std::weak_ptr<Engine> engine_;
  std::shared_ptr<State> state_;
  pid_t pid_;  // a child's copy has nothing to end
};

struct Submission {
  int64_t call = 0;
  PromptKind kind = PromptKind::kText;
  bool stream = false, single = false;
  // On another thread: what is wrong with the call comes as mail, and so does word that it was taken where it streams.
  bool later = false;
  int64_t first_position = 0;  // of its prompts, where the caller's list comes in several calls
};

// A prompt held in the cache. Goes with its Python object.
class NativePin {
 public:
  explicit NativePin(PinnedPrefix prefix)
      : prefix_(std::make_unique<PinnedPrefix>(std::move(prefix))), pid_(getpid()) {}
  NativePin(NativePin&&) = default;
  ~NativePin() { release(); }
  int64_t tokens() const { return prefix_ ? prefix_->tokens() : 0; }
  void release();

 private:
  std::unique_ptr<PinnedPrefix> prefix_;
  pid_t pid_;
};

class NativeEngine {
 public:
  // Loads the model; releases the GIL meanwhile, and raises what a signal handler of Python's raises (Ctrl-C).
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
  // Waits until the prompt is computed; Ctrl-C ends that.
  NativePin pin(PromptKind kind, nb::object prompt, const RequestOptions& options);
  int64_t save_prefix(PromptKind kind, nb::object prompt, const RequestOptions& options, const std::string& path);
  std::vector<int32_t> encode_text(nb::object object, bool add_special_tokens);  // Ctrl-C ends the wait

 private:
  template <class Work>
  auto run_held(PromptKind kind, nb::object prompt, const RequestOptions& options, Work work);

  std::shared_ptr<Engine> engine_;
  std::shared_ptr<std::atomic<bool>> closing_ = std::make_shared<std::atomic<bool>>(false);
  std::unique_ptr<Submitter> submitter_ = std::make_unique<Submitter>();
  std::unique_ptr<Aside> aside_ = std::make_unique<Aside>();
  pid_t pid_;
};

}  // namespace tokenmill::python
