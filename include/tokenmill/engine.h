// The engine: load a model once, then generate from any thread, one prompt or a hundred thousand.
//
//   tokenmill::Engine engine({.model_path = "model.gguf"});
//   auto out = engine.generate({.prompt = "The capital of France is"});
//
// Everything rests on submit(); generate, generate_async and generate_stream are conveniences over it.
#pragma once

#include <cstdint>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tokenmill/batch.h"
#include "tokenmill/error.h"
#include "tokenmill/export.h"
#include "tokenmill/log.h"
#include "tokenmill/output.h"
#include "tokenmill/sampling_params.h"
#include "tokenmill/server_args.h"
#include "tokenmill/stream.h"

namespace tokenmill {

struct ChatMessage {
  std::string role = {}, content = {};
};
// For Request::messages_json, which takes what this cannot say (tools, parts) too.
TOKENMILL_API std::string messages_to_json(const std::vector<ChatMessage>& messages);

// One prompt. Exactly one of prompt, input_ids and messages_json is given.
struct Request {
  std::optional<std::string> prompt = {};
  std::optional<std::vector<int32_t>> input_ids = {};
  std::optional<std::string> messages_json = {};  // OpenAI-style list; the model's chat template is applied
  std::string chat_kwargs_json = "{}";            // for the template: {"enable_thinking": false}
  SamplingParams sampling_params = {};
  bool return_logprob = false;  // logprobs of output tokens
  std::optional<int64_t> logprob_start_len = {};
  int64_t top_logprobs_num = 0;
  std::vector<int64_t> token_ids_logprob = {};
  std::optional<std::string> lora_path = {};
  std::optional<std::string> rid = {};         // nullopt: made by the engine
  int64_t priority = 0;                        // larger first, with schedule_policy='priority'
  std::optional<std::string> cache_salt = {};  // prefixes are shared only among requests with the same one
  bool stream = false;  // on_output is called for every chunk, else once a sample, when it has finished
  bool return_prompt_token_ids = false;
};

// Called on the engine's output thread, chunks of one request in order. Returning false cancels the request.
// Must not block for long and must not throw (a throw is logged and cancels). It may submit and abort, but not wait:
// generate(), flush_cache() and shutdown() throw there. When the engine dies or is shut down, what is unfinished ends
// with finish_reason abort.
using OutputCallback = std::function<bool(Output&&)>;

// Called at most once a call, on the output thread, when the engine died or was shut down before all of the call's
// requests had finished: those then get no Output. So does a call of one request whose logit processor throws or which
// leaves no token to sample (Error(kValue)). The same rules as for OutputCallback.
using FailureCallback = std::function<void(const Error&)>;

// Asked several times a second by a call that may take long, on the thread that made the call. False ends the call,
// which then throws Error(kRuntime). Must not throw.
using KeepGoing = std::function<bool()>;

// The next request of a lazy list; nullopt: there is no more.
using RequestSource = std::function<std::optional<Request>()>;

struct Usage {
  int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
};

// A prompt whose K/V stay in the cache, whoever runs, until the handle is released or goes. Move-only; may outlive the
// engine, and then does nothing.
class TOKENMILL_API PinnedPrefix {
 public:
  class Impl;
  explicit PinnedPrefix(std::unique_ptr<Impl> impl);
  PinnedPrefix(PinnedPrefix&&) noexcept;
  PinnedPrefix& operator=(PinnedPrefix&&) noexcept;
  ~PinnedPrefix();  // release()
  int64_t tokens() const;
  void release();  // idempotent; takes effect between two steps

 private:
  std::unique_ptr<Impl> impl_;
};

// Every member function may be called from any thread, also while others are under way; only destruction must come
// after the last call has returned. Neither copied nor moved: hold it in a std::unique_ptr or std::shared_ptr to hand
// it on. Streams and futures may outlive it; they end with an error where they had not finished.
class TOKENMILL_API Engine {
 public:
  // Loads the model; throws Error naming the file, the key and the remedy.
  explicit Engine(ServerArgs args, LogSink log_sink = nullptr, const KeepGoing& keep_going = nullptr);
  class Impl;
  explicit Engine(std::shared_ptr<Impl> impl);  // over parts made elsewhere (src/engine/engine_impl.h)
  ~Engine();                                    // shutdown()
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Queues one request and returns its id; throws Error(kValue | kType | kUnsupported) on bad arguments, among them
  // an over-long prompt. Output::index counts its samples.
  std::string submit(Request request, OutputCallback on_output, FailureCallback on_failure = nullptr);
  // Queues a list as one unit (up to 4,096 prompts; a longer list is fed through a window of that many): types, keys
  // and values are checked before anything runs; what only tokenising shows, and a grammar, ends that item alone.
  // Returns the ids, one a request. Output::index is the place in the list; with n > 1 the samples of all requests
  // are counted through, as generate() returns them. keep_going is asked while the list is tokenised; where it ends the
  // call, nothing of the list runs.
  std::vector<std::string> submit(std::vector<Request> requests, OutputCallback on_output,
                                  FailureCallback on_failure = nullptr, const KeepGoing& keep_going = nullptr);

  // What fails with one request of a list (it is over-long, its logit processor throws, no token is left to sample) is
  // told in that one's finish_reason; a single request's throws Error(kValue), from Stream::next() too.
  std::vector<Output> generate(Request request);                // n outputs
  std::vector<Output> generate(std::vector<Request> requests);  // in input order, prompt-major over samples
  std::future<std::vector<Output>> generate_async(std::vector<Request> requests);
  Stream generate_stream(Request request);
  Stream generate_stream(std::vector<Request> requests);  // chunks interleave, each with its index

  // Runs requests that are made as they are needed: `next` is called on this thread only, at most a window of 4,096
  // waiting prompts ahead of what runs, so memory does not grow with the list. on_output is called on this thread, too,
  // as outputs come; Output::index is the place in the list. A request that is not valid ends with finish_reason abort
  // as its own output. Returns when all have finished; when on_output returns false, or either function throws, what
  // still runs is aborted first. Throws Error(kRuntime) when the engine died.
  void generate_iter(const RequestSource& next, const OutputCallback& on_output);

  // Runs a file of requests (JSON lines; "-": standard input) and appends each result to `output` as it finishes. Run
  // again after any end, kill -9 included, it does what is missing and nothing twice. Memory does not grow with the
  // file, 8 bytes a line apart. A line that is no request, and a request that fails, goes to the error file and is
  // tried again by the next run. output "": nothing is written, on_result alone gets the results.
  // Throws Error: kValue for files that cannot be read or written, that another run holds, or whose results belong to
  // another input or other settings; kRuntime when the disk is full or the engine died (what was written stays good).
  // Blocks; not from on_output.
  BatchReport run_batch(const std::string& input, const std::string& output, const BatchOptions& options = {});

  void abort(std::string_view rid);
  void abort_all();
  bool flush_cache();  // false (and a warning) while requests are pending; pinned prefixes stay
  // Computes the request's prompt (nothing is generated; its sampling parameters are not looked at) and keeps it in the
  // cache. Pins may hold three quarters of the KV pool; throws Error(kValue) beyond that, without a radix cache, and
  // where the prompt cannot run.
  PinnedPrefix pin(Request request);

  // A long system prompt, computed once: save_prefix computes the request's prompt and writes its K/V to a file,
  // load_prefix puts a file's K/V into the cache, where requests that begin with these tokens find them (as what any
  // request has left there: pin() holds it). Both return the number of tokens: whole blocks of page_size, a rest is
  // computed each time. The file belongs to this model, dtype, page_size, code path and version of tokenmill: any other
  // is refused, a cut or damaged file too, and where results repeat bit for bit (the CPU, and
  // enable_deterministic_inference) the first 64 tokens are computed again and must give the file's bits. The
  // model is told by a hash of all its files, read whole by an engine's first call. The file holds the prompt's token
  // ids and is readable by its owner only; its checksum finds damage, it withstands no forger.
  // Throw Error: kValue for a prompt that cannot run or fills no block, a file that is refused, and without a radix
  // cache; kUnsupported for models whose sliding-window layers have a KV pool of their own; kRuntime where the file
  // cannot be written, the KV pool cannot take it now, or the model's files have changed since they were loaded. Block;
  // not from on_output.
  int64_t save_prefix(Request request, const std::string& path);
  int64_t load_prefix(const std::string& path, const std::optional<std::string>& cache_salt = {});

  // Counters and gauges by name, and histograms: NAME_count, NAME_sum, NAME_p50, NAME_p99 and NAME_le_BOUND (how many
  // were at most BOUND) for queue_time_seconds, time_to_first_token_seconds, inter_token_latency_seconds,
  // e2e_latency_seconds, batch_size, step_tokens and step_{admit,schedule,forward,commit,publish}_seconds.
  std::map<std::string, double> stats() const;
  // The same as Prometheus text (format 0.0.4), for a /metrics page.
  std::string prometheus_metrics() const;
  // Resolved arguments, sizes and start-up timings, as JSON text.
  std::string server_info_json() const;
  // Ends waiting calls with Error(kRuntime) and frees model, KV pool and tokenizer: what needs them throws from then
  // on, facts (stats, server_args, vocab_size …) stay. Idempotent.
  void shutdown();

  // Tokenizer. Throws Error(kValue) when the engine was made with skip_tokenizer_init.
  // encode_text: the ids that a prompt of that text gets; without add_special_tokens, those of the text alone.
  std::vector<int32_t> encode_text(std::string_view text, bool add_special_tokens = true) const;
  std::string decode_ids(const std::vector<int32_t>& ids, bool skip_special_tokens = true) const;
  std::string apply_chat_template(const std::string& messages_json, bool add_generation_prompt = true,
                                  const std::string& kwargs_json = "{}") const;
  std::vector<int32_t> eos_token_ids() const;   // all that end an output, sorted
  std::optional<int32_t> eos_token_id() const;  // the tokenizer's own, else the first that the model's files name
  std::optional<int32_t> bos_token_id() const;
  int64_t vocab_size() const;
  int64_t context_length() const;
  const ServerArgs& server_args() const;  // resolved: every "None" replaced by its value

 private:
  std::shared_ptr<Impl> impl_;
};

// The library's version, such as "0.1.0".
TOKENMILL_API std::string version();

}  // namespace tokenmill
