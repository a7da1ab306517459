#include "engine/batch/batch_run.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <ctime>
#include <deque>
#include <exception>
#include <filesystem>
#include <mutex>
#include <utility>

#include "engine/json_text.h"
#include "engine/sampling_params_json.h"
#include "engine/text_repr.h"

namespace tokenmill {
namespace {

// Tokenised and handed over at once: enough for the threads that tokenise, little enough to keep results flowing.
constexpr size_t kSubmitRequests = 64;
// Read at one go, those that are skipped included, so that progress is told in between.
constexpr int kReadLines = 4096;
constexpr std::chrono::milliseconds kWait(100);

// What results depend on beside the input's line: another model or other parameters make another batch.
uint64_t hash_settings(const ServerArgs& args, const BatchOptions& options) {
  std::error_code ignored;
  const std::filesystem::path canonical = std::filesystem::canonical(args.model_path, ignored);
  const nlohmann::ordered_json settings = {
      {"model", canonical.empty() ? args.model_path : canonical.string()},
      {"revision", args.revision.value_or("")},
      {"chat_template", args.chat_template.value_or("")},
      {"override", args.json_model_override_args},
      {"sampling_params", sampling_to_json(options.sampling_params)},
      {"return_logprob", options.return_logprob},
      {"top_logprobs_num", options.top_logprobs_num},
  };
  return fnv1a(dump_json(settings));
}

}  // namespace

// From the output thread to the run's. Shared with the callbacks, which may outlive the run.
class BatchRun::Inbox {
 public:
  void push(Arrival arrival) {
    const std::lock_guard lock(mutex_);
    arrivals_.push_back(std::move(arrival));
    ready_.notify_one();
  }
  void fail(const Error& error) {
    const std::lock_guard lock(mutex_);
    error_ = error;
    ready_.notify_one();
  }
  // What has come, at once if there is any; throws when the engine died and all that came before was taken.
  std::deque<Arrival> take(std::chrono::milliseconds timeout) {
    std::unique_lock lock(mutex_);
    ready_.wait_for(lock, timeout, [&] { return !arrivals_.empty() || error_; });
    if (arrivals_.empty() && error_) throw *error_;
    return std::exchange(arrivals_, {});
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<Arrival> arrivals_;
  std::optional<Error> error_;
};

BatchRun::BatchRun(EngineCore& core, const std::string& input, const std::string& output, const BatchOptions& options)
    : core_(core),
      options_(options),
      window_(std::min(options.window, *core.args().max_queued_requests)),
      settings_hash_(hash_settings(core.args(), options)),
      context_{.served_model_name = *core.args().served_model_name, .created = std::time(nullptr)},
      input_(input),
      inbox_(std::make_shared<Inbox>()) {
  if (!output.empty()) {
    output_.emplace(output);
    if (output_->is_same_file(input_.fd())) {
      throw Error(ErrorKind::kValue, output + ": is the input too; give another output.");
    }
    if (options.overwrite) output_->cut(0);
    if (output_->has_content()) earlier_ = output_->scan(input_.count());
  }
  survey();
  const std::string derived = output_ && output_->is_regular() ? default_error_path(output) : "";
  errors_.emplace(options.error_path.value_or(derived));
  input_.rewind();
}

BatchRun::~BatchRun() {
  for (const auto& [index, pending] : pending_) core_.abort(pending.rid);
}

// The first pass: counts, finds custom_ids that come twice, and checks that the results there are belong to this input.
void BatchRun::survey() {
  std::vector<uint64_t> ids;
  std::string last_line;
  while (input_.next(line_)) {
    if (time_to_look()) report_progress();
    if (report_.stopped) return;
    const int64_t index = input_.index();
    if (const std::string id = find_custom_id(line_); !id.empty()) ids.push_back(fnv1a(id));
    if (index == earlier_.last_index) last_line = line_;
    if (!earlier_.is_done(index)) continue;
    ++report_.resumed;
    if (earlier_.fingerprints[static_cast<size_t>(index)] == fingerprint_of(line_)) continue;
    throw Error(ErrorKind::kValue,
                input_.name() + ": line " + std::to_string(input_.line_number()) +
                    " is not the one whose result is in the output, or the model or the sampling parameters are "
                    "others; give another output, or choose to overwrite this one.");
  }
  report_.total = input_.index() + 1;
  earlier_.fingerprints = {};
  std::sort(ids.begin(), ids.end());
  for (auto id = ids.begin(); (id = std::adjacent_find(id, ids.end())) != ids.end(); ++id) first_lines_[*id] = 0;
  if (output_ && output_->is_regular()) mend(last_line);
}

// Cuts off a torn line, and the last request's lines where a sample is missing.
void BatchRun::mend(const std::string& last_line) {
  int64_t bytes = earlier_.bytes;
  if (earlier_.last_index >= 0) {
    const BatchRequest request = parse_batch_line(last_line, options_);
    if (request.form == LineForm::kNative && earlier_.last_lines < request.request.sampling_params.n) {
      bytes = earlier_.last_offset;
      earlier_.done[static_cast<size_t>(earlier_.last_index)] = false;
      --report_.resumed;
    }
  }
  output_->cut(bytes);
}

BatchReport BatchRun::run() {
  while (true) {
    if (!report_.stopped) feed();
    if (pending_.empty() && (exhausted_ || report_.stopped)) break;
    take();
  }
  report_progress();
  if (output_) output_->sync();
  report_.error_path = errors_->path();
  return report_;
}

bool BatchRun::time_to_look() {
  const auto now = std::chrono::steady_clock::now();
  if (now - looked_ < kWait) return false;
  looked_ = now;
  return true;
}

void BatchRun::report_progress() {
  if (!options_.on_progress || report_.stopped || options_.on_progress(report_)) return;
  report_.stopped = true;
  for (const auto& [index, pending] : pending_) core_.abort(pending.rid);
}

void BatchRun::feed() {
  std::vector<Request> requests;
  std::vector<int64_t> indices;
  for (int i = 0; i < kReadLines && requests.size() < kSubmitRequests && has_room() && !exhausted_; ++i) {
    exhausted_ = !read_one(requests, indices);
  }
  if (!requests.empty()) submit(std::move(requests), indices);
}

// False at the input's end.
bool BatchRun::read_one(std::vector<Request>& requests, std::vector<int64_t>& indices) {
  if (!input_.next(line_)) return false;
  const int64_t index = input_.index();
  if (index >= report_.total) return false;
  const RecordId id{.index = index, .fingerprint = fingerprint_of(line_)};
  try {
    check_repeated(line_);
    if (earlier_.is_done(index)) return true;
    if (input_.too_long()) {
      throw Error(ErrorKind::kValue,
                  "a line must have at most " + std::to_string(BatchInput::kLineBytesMax) + " bytes.");
    }
    Pending pending{.meta = parse_batch_line(line_, options_),
                    .rid = {},
                    .line = input_.line_number(),
                    .missing = 0,
                    .fingerprint = id.fingerprint,
                    .outputs = {},
                    .error = {}};
    core_.preparer()->check(pending.meta.request);
    SamplingParams& params = pending.meta.request.sampling_params;
    // By place, so that a run in several parts draws what one in one part would.
    if (!params.sampling_seed) {
      params.sampling_seed =
          derive_seed(static_cast<uint64_t>(*core_.args().random_seed), static_cast<uint64_t>(index));
    }
    pending.missing = params.n;
    pending.outputs.resize(static_cast<size_t>(params.n));
    samples_ += params.n;
    requests.push_back(std::exchange(pending.meta.request, {}));
    indices.push_back(index);
    pending_.emplace(index, std::move(pending));
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kRuntime) throw;  // of the engine, not of this line
    fail(id, input_.line_number(), find_custom_id(line_), "invalid_request", error.what());
  }
  return true;
}

// The first line with a custom_id has it; a later one is an error.
void BatchRun::check_repeated(const std::string& text) {
  if (first_lines_.empty()) return;
  const std::string id = find_custom_id(text);
  const auto found = id.empty() ? first_lines_.end() : first_lines_.find(fnv1a(id));
  if (found == first_lines_.end()) return;
  if (found->second == 0) {
    found->second = input_.line_number();
    return;
  }
  throw Error(ErrorKind::kValue,
              "custom_id " + id + " is that of line " + std::to_string(found->second) + " too; each must be its own.");
}

void BatchRun::submit(std::vector<Request> requests, const std::vector<int64_t>& indices) {
  std::vector<int64_t> owners;  // Output::index -> the request's index
  for (size_t i = 0; i < requests.size(); ++i) {
    owners.insert(owners.end(), static_cast<size_t>(requests[i].sampling_params.n), indices[i]);
  }
  auto call = std::make_shared<Call>();
  call->on_output = [inbox = inbox_, owners = std::move(owners)](Output&& output) {
    const int64_t index = owners[static_cast<size_t>(output.index)];
    inbox->push({.index = index, .output = std::move(output)});
    return true;
  };
  call->on_failure = [inbox = inbox_](const Error& error) { inbox->fail(error); };
  // Tokenising long prompts may take minutes: it is looked for a stop there too.
  bool ended = false;
  std::exception_ptr thrown;
  const KeepGoing keep_going = [&] {
    if (ended || !options_.on_progress || !time_to_look()) return !ended;
    try {
      ended = !options_.on_progress(report_);
    } catch (...) {
      ended = true;
      thrown = std::current_exception();
    }
    return !ended;
  };
  std::vector<std::string> rids;
  try {
    rids = core_.submit(std::move(requests), std::move(call), /*single=*/false, {}, keep_going);
  } catch (const Error&) {
    forget(indices);
    if (thrown) std::rethrow_exception(thrown);
    if (!ended) {
      // The engine is gone, but what it had finished is on its way; the rest of `pending_` ends with its error.
      while (!pending_.empty()) {
        for (Arrival& arrival : inbox_->take(kWait)) collect(std::move(arrival));
      }
      throw;
    }
    report_.stopped = true;
    for (const auto& [index, pending] : pending_) core_.abort(pending.rid);
    return;
  }
  for (size_t i = 0; i < rids.size(); ++i) pending_.at(indices[i]).rid = rids[i];
}

// Requests that the engine did not take: they have no result in this run.
void BatchRun::forget(const std::vector<int64_t>& indices) {
  for (const int64_t index : indices) {
    samples_ -= pending_.at(index).missing;
    pending_.erase(index);
  }
}

void BatchRun::take() {
  const bool more_to_feed = !exhausted_ && !report_.stopped && has_room();
  std::deque<Arrival> arrivals = inbox_->take(more_to_feed ? std::chrono::milliseconds(0) : kWait);
  report_progress();  // first: what a stop cuts off is no failure
  for (Arrival& arrival : arrivals) collect(std::move(arrival));
}

void BatchRun::collect(Arrival arrival) {
  const auto found = pending_.find(arrival.index);
  if (found == pending_.end()) return;
  Pending& pending = found->second;
  const FinishReason& reason = *arrival.output.meta_info.finish_reason;
  if (reason.type == FinishReason::Type::kAbort) pending.error = reason.message;
  const auto sample = static_cast<size_t>(arrival.output.sample);
  pending.outputs[sample] = std::move(arrival.output);
  --samples_;
  if (--pending.missing > 0) return;
  Pending ended = std::move(pending);
  pending_.erase(found);
  const RecordId id{.index = arrival.index, .fingerprint = ended.fingerprint};
  if (!ended.error.empty()) {
    if (report_.stopped) return;
    const std::string custom_id = ended.meta.custom_id.is_null() ? "" : dump_json(ended.meta.custom_id);
    fail(id, ended.line, custom_id, "request_failed", ended.error);
    return;
  }
  std::string json = result_lines(ended.meta, id, ended.outputs, context_);
  finish({.id = id, .line = ended.line, .outputs = std::move(ended.outputs), .json = std::move(json), .error = {}});
}

void BatchRun::fail(const RecordId& id, int64_t line, const std::string& custom_id, const char* code,
                    const std::string& error) {
  finish({.id = id, .line = line, .outputs = {}, .json = error_line(id, custom_id, line, code, error), .error = error});
}

void BatchRun::finish(Ended ended) {
  if (!options_.ordered) {
    emit(ended);
    return;
  }
  held_.emplace(ended.id.index, std::move(ended));
  while (true) {
    const auto found = held_.find(next_);
    if (found != held_.end()) {
      emit(found->second);
      held_.erase(found);
    } else if (!earlier_.is_done(next_)) {
      return;
    }
    ++next_;
  }
}

void BatchRun::emit(const Ended& ended) {
  if (ended.error.empty()) {
    if (output_) output_->append(ended.json);
    ++report_.done;
    report_.prompt_tokens += ended.outputs.front().meta_info.prompt_tokens;
    report_.cached_tokens += ended.outputs.front().meta_info.cached_tokens;
    for (const Output& output : ended.outputs) report_.completion_tokens += output.meta_info.completion_tokens;
  } else {
    errors_->append(ended.json);
    ++report_.failed;
  }
  if (options_.on_result) {
    options_.on_result({.index = ended.id.index,
                        .line = ended.line,
                        .outputs = &ended.outputs,
                        .json = ended.json,
                        .error = ended.error});
  }
}

}  // namespace tokenmill
