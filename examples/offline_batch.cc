// Four prompts in four modes through the public API: batch and streaming, synchronous and asynchronous.
//
//   offline_batch MODEL_PATH          a model folder, a .gguf file or a cached hub id
//
// Prompts and texts go to stdout, in plain lines where that is not a terminal; the engine's own lines to stderr.
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <exception>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "tokenmill/engine.h"

namespace {

using tokenmill::Engine;
using tokenmill::Output;
using tokenmill::Request;

const std::vector<std::string> kPrompts = {"Hello, my name is", "The president of the United States is",
                                           "The capital of France is", "The future of AI is"};

std::vector<Request> make_requests() {
  std::vector<Request> requests;
  for (const std::string& prompt : kPrompts) {
    Request request;
    request.prompt = prompt;
    request.sampling_params.temperature = 0.8;
    request.sampling_params.top_p = 0.95;
    requests.push_back(std::move(request));
  }
  return requests;
}

// Prints one mode: its title, prompts with their texts, and what it cost.
class Mode {
 public:
  explicit Mode(const char* title) : start_(std::chrono::steady_clock::now()) {
    std::printf("\n%s=== %s ===%s\n", bold(), title, plain());
    std::fflush(stdout);
  }
  ~Mode() {
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start_;
    std::printf("\n[%lld tokens in %.2f s: %.1f tokens/s; %lld of %lld prompt tokens from the cache]\n",
                static_cast<long long>(completion_tokens_), elapsed.count(),
                static_cast<double>(completion_tokens_) / elapsed.count(), static_cast<long long>(cached_tokens_),
                static_cast<long long>(prompt_tokens_));
    std::fflush(stdout);
  }
  Mode(const Mode&) = delete;
  Mode& operator=(const Mode&) = delete;

  void begin(const std::string& prompt) {
    std::printf("\nPrompt: %s%s%s\nGenerated text:", bold(), prompt.c_str(), plain());
    std::fflush(stdout);
  }
  void text(const std::string& text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  }
  void end(const Output& last) {
    completion_tokens_ += last.meta_info.completion_tokens;
    prompt_tokens_ += last.meta_info.prompt_tokens;
    cached_tokens_ += last.meta_info.cached_tokens;
    const auto& reason = *last.meta_info.finish_reason;
    if (reason.type == tokenmill::FinishReason::Type::kAbort) std::printf(" [%s]", reason.message.c_str());
    std::printf("\n");
    std::fflush(stdout);
  }

 private:
  static bool is_terminal() {
    static const bool terminal = isatty(STDOUT_FILENO) == 1;
    return terminal;
  }
  static const char* bold() { return is_terminal() ? "\033[1m" : ""; }
  static const char* plain() { return is_terminal() ? "\033[0m" : ""; }

  std::chrono::steady_clock::time_point start_;
  long long completion_tokens_ = 0, prompt_tokens_ = 0, cached_tokens_ = 0;
};

void print_all(Mode& mode, const std::vector<Output>& outputs) {
  for (size_t i = 0; i < outputs.size(); ++i) {
    mode.begin(kPrompts[i]);
    mode.text(outputs[i].text);
    mode.end(outputs[i]);
  }
}

void batch_synchronous(Engine& engine) {
  Mode mode("Batch, synchronous: generate()");
  print_all(mode, engine.generate(make_requests()));
}

void streaming_synchronous(Engine& engine) {
  Mode mode("Streaming, synchronous: generate_stream(), one prompt after the other");
  for (Request& request : make_requests()) {
    mode.begin(*request.prompt);
    for (const Output& chunk : engine.generate_stream(std::move(request))) {
      mode.text(chunk.text);
      if (chunk.finished()) mode.end(chunk);
    }
  }
}

void batch_asynchronous(Engine& engine) {
  Mode mode("Batch, asynchronous: generate_async()");
  std::future<std::vector<Output>> outputs = engine.generate_async(make_requests());
  // The caller is free to do other work here.
  print_all(mode, outputs.get());
}

// All prompts run at once and their chunks interleave. The first one that has not ended is shown as it comes; what
// comes for the others meanwhile is held until their turn.
void streaming_asynchronous(Engine& engine) {
  Mode mode("Streaming, asynchronous: submit() with a callback, all prompts at once");
  std::mutex mutex;
  std::condition_variable arrived;
  std::vector<std::string> texts(kPrompts.size());
  std::vector<Output> ends(kPrompts.size());
  std::vector<Request> requests = make_requests();
  for (Request& request : requests) request.stream = true;
  engine.submit(std::move(requests), [&](Output&& chunk) {
    const auto index = static_cast<size_t>(chunk.index);
    const std::lock_guard lock(mutex);
    texts[index] += chunk.text;
    if (chunk.finished()) ends[index] = std::move(chunk);
    arrived.notify_one();
    return true;
  });
  std::unique_lock lock(mutex);
  for (size_t i = 0; i < kPrompts.size(); ++i) {
    mode.begin(kPrompts[i]);
    while (true) {
      arrived.wait(lock, [&] { return !texts[i].empty() || ends[i].finished(); });
      mode.text(std::exchange(texts[i], {}));
      if (ends[i].finished()) break;
    }
    mode.end(ends[i]);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2 || argv[1][0] == '-') {
    std::fprintf(stderr, "usage: %s MODEL_PATH\n", argv[0]);
    return 2;
  }
  try {
    tokenmill::ServerArgs args;
    args.model_path = argv[1];
    args.log_level = "warning";
    Engine engine(args);
    // Streaming first: the first words are there as soon as the model is.
    streaming_synchronous(engine);
    batch_synchronous(engine);
    streaming_asynchronous(engine);
    batch_asynchronous(engine);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
