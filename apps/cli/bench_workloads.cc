#include "cli/bench_workloads.h"

#include <algorithm>
#include <chrono>
#include <random>

#include "cli/interrupt.h"

namespace tokenmill::cli {
namespace {

using Clock = std::chrono::steady_clock;

// Fresh ids every time, so that no run finds another's prefix in the cache.
class IdSource {
 public:
  IdSource(uint64_t seed, int64_t vocab_size) : random_(seed), vocab_size_(static_cast<uint64_t>(vocab_size)) {}
  std::vector<int32_t> take(int64_t count) {
    std::vector<int32_t> ids(static_cast<size_t>(count));
    for (int32_t& id : ids) id = static_cast<int32_t>(random_() % vocab_size_);
    return ids;
  }

 private:
  std::mt19937_64 random_;
  uint64_t vocab_size_;
};

Request make_request(std::vector<int32_t> ids, int64_t max_new_tokens) {
  Request request;
  request.input_ids = std::move(ids);
  request.sampling_params.max_new_tokens = max_new_tokens;
  request.sampling_params.temperature = 0;
  request.sampling_params.ignore_eos = true;
  request.sampling_params.stream_interval = 1;
  request.stream = true;
  return request;
}

double quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1) + 0.5)];
}

// Times at which the tokens of each sequence came, in seconds since the call.
using TokenTimes = std::vector<std::vector<double>>;

TokenTimes run(Engine& engine, std::vector<Request> requests) {
  TokenTimes times(requests.size());
  engine.flush_cache();
  const Clock::time_point start = Clock::now();
  Stream stream = engine.generate_stream(std::move(requests));
  while (const std::optional<Output> chunk = stream.next()) {
    const double now = std::chrono::duration<double>(Clock::now() - start).count();
    if (interrupted()) throw Error(ErrorKind::kRuntime, "interrupted");
    if (chunk->finished() && chunk->meta_info.finish_reason->type == FinishReason::Type::kAbort) {
      throw Error(ErrorKind::kRuntime, chunk->meta_info.finish_reason->message);
    }
    auto& sequence = times[static_cast<size_t>(chunk->index)];
    sequence.insert(sequence.end(), chunk->output_ids.size(), now);
  }
  return times;
}

DecodeResult evaluate(const TokenTimes& times, int64_t batch_size) {
  DecodeResult result;
  result.batch_size = batch_size;
  double full_from = 0, full_to = 1e300, end = 0;
  int64_t all_tokens = 0;
  std::vector<double> first, steps;
  for (const auto& sequence : times) {
    if (sequence.empty()) throw Error(ErrorKind::kRuntime, "a sequence gave no token");
    full_from = std::max(full_from, sequence.front());
    full_to = std::min(full_to, sequence.back());
    end = std::max(end, sequence.back());
    all_tokens += static_cast<int64_t>(sequence.size());
    first.push_back(sequence.front());
  }
  int64_t full_tokens = 0;
  for (const auto& sequence : times) {
    for (size_t i = 1; i < sequence.size(); ++i) {
      if (sequence[i] <= full_from || sequence[i] > full_to) continue;
      ++full_tokens;
      steps.push_back(sequence[i] - sequence[i - 1]);
    }
  }
  if (full_tokens == 0 || full_to <= full_from) {
    throw Error(ErrorKind::kRuntime, "the sequences of batch " + std::to_string(batch_size) +
                                         " never ran together; raise --output-length or max_running_requests");
  }
  result.tokens_per_s = static_cast<double>(full_tokens) / (full_to - full_from);
  result.total_tokens_per_s = static_cast<double>(all_tokens) / end;
  result.first_token_p50_s = quantile(first, 0.5);
  result.first_token_p99_s = quantile(first, 0.99);
  result.step_p50_s = quantile(steps, 0.5);
  result.step_p99_s = quantile(steps, 0.99);
  return result;
}

}  // namespace

PrefillResult measure_prefill(Engine& engine, const BenchSettings& settings) {
  IdSource ids(settings.seed, engine.vocab_size());
  std::vector<double> seconds;
  for (int64_t i = 0; i < settings.repeat + 1; ++i) {  // the first run warms up and is not counted
    const TokenTimes times = run(engine, {make_request(ids.take(settings.prefill_length), 1)});
    if (i > 0) seconds.push_back(times.at(0).at(0));
  }
  PrefillResult result;
  result.tokens = settings.prefill_length;
  result.seconds = quantile(seconds, 0.5);
  result.tokens_per_s = static_cast<double>(settings.prefill_length) / result.seconds;
  return result;
}

DecodeResult measure_decode(Engine& engine, const BenchSettings& settings, int64_t batch_size) {
  IdSource ids(settings.seed + static_cast<uint64_t>(batch_size), engine.vocab_size());
  std::vector<DecodeResult> results;
  // On a device the first run records steps and loads kernels, and is not counted.
  const int64_t first = engine.server_args().device == "cpu" ? 0 : -1;
  for (int64_t i = first; i < settings.repeat; ++i) {
    std::vector<Request> requests;
    for (int64_t b = 0; b < batch_size; ++b) {
      requests.push_back(make_request(ids.take(settings.input_length), settings.output_length));
    }
    const TokenTimes times = run(engine, std::move(requests));
    if (i >= 0) results.push_back(evaluate(times, batch_size));
  }
  const auto middle = results.begin() + static_cast<std::ptrdiff_t>(results.size() / 2);
  std::nth_element(results.begin(), middle, results.end(),
                   [](const DecodeResult& a, const DecodeResult& b) { return a.tokens_per_s < b.tokens_per_s; });
  return *middle;
}

}  // namespace tokenmill::cli
