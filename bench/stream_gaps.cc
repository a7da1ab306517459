// Gaps between the tokens of running streams, alone and while a long prompt is computed beside them.
//
//   stream_gaps --model PATH [--streams 16] [--prompt 32000] [--tokens 200] [--chunk 0] [--threads 0] [--context 0]
//
// Prints p50, p99 and the longest gap of both phases, and the long prompt's time to its token. Chunk, threads and
// context 0: the engine's own. A context beyond the model's is computed all the same: the answers mean nothing then,
// the times do.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tokenmill/engine.h"

namespace tokenmill::bench {
namespace {

using Clock = std::chrono::steady_clock;

// Touched on the engine's output thread; the main thread reads a phase's gaps once the next has begun.
struct Gaps {
  std::vector<Clock::time_point> last;
  std::vector<double> phases[3];  // warming up, alone, beside the prompt
  std::atomic<int> phase{0};
  std::atomic<int64_t> tokens[3] = {0, 0, 0};

  void on_token(size_t stream) {
    const auto now = Clock::now();
    const int current = phase;
    if (current > 2) return;
    if (last[stream].time_since_epoch().count() != 0) {
      phases[current].push_back(std::chrono::duration<double>(now - last[stream]).count());
    }
    last[stream] = now;
    ++tokens[current];
  }
};

std::vector<int32_t> random_ids(std::mt19937_64& random, int64_t count) {
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (int32_t& id : ids) id = static_cast<int32_t>(3 + random() % 380);
  return ids;
}

void print(const char* name, std::vector<double> gaps) {
  if (gaps.empty()) return;
  std::sort(gaps.begin(), gaps.end());
  const auto at = [&](double q) { return 1e3 * gaps[static_cast<size_t>(q * static_cast<double>(gaps.size() - 1))]; };
  std::printf("%-24s %8zu gaps, p50 %8.2f ms, p99 %8.2f ms, longest %8.2f ms\n", name, gaps.size(), at(0.5), at(0.99),
              at(1));
}

int run(std::map<std::string, std::string> flags) {
  const auto number = [&](const char* name, int64_t fallback) {
    return flags.count(name) ? std::atoll(flags[name].c_str()) : fallback;
  };
  const int64_t streams = number("--streams", 16), prompt = number("--prompt", 32000), wanted = number("--tokens", 200);
  ServerArgs args;
  args.model_path = flags["--model"];
  args.skip_tokenizer_init = true;
  args.log_level = "error";
  if (const int64_t chunk = number("--chunk", 0)) args.chunked_prefill_size = chunk;
  if (const int64_t threads = number("--threads", 0)) args.num_threads = threads;
  if (const int64_t context = number("--context", 0)) {
    args.json_model_override_args = "{\"max_position_embeddings\": " + std::to_string(context) + "}";
  }
  Engine engine(args);
  std::mt19937_64 random(1);
  Gaps gaps;
  gaps.last.resize(static_cast<size_t>(streams));
  const auto request = [&](int64_t length, int64_t new_tokens) {
    Request made;
    made.input_ids = random_ids(random, length);
    made.sampling_params.max_new_tokens = new_tokens;
    made.sampling_params.ignore_eos = true;
    made.sampling_params.temperature = 0;
    made.stream = true;
    return made;
  };
  for (int64_t i = 0; i < streams; ++i) {
    Request made = request(64, prompt);
    made.sampling_params.stream_interval = 1;
    engine.submit(std::move(made), [&gaps, i](Output&&) {
      gaps.on_token(static_cast<size_t>(i));
      return gaps.phase < 3;
    });
  }
  const auto wait_for = [&](int phase, int64_t count) {
    while (gaps.tokens[phase] < count) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  };
  wait_for(0, streams * 20);
  gaps.phase = 1;
  wait_for(1, streams * wanted);
  gaps.phase = 2;
  std::promise<void> done;
  const auto start = Clock::now();
  engine.submit(request(prompt, 1), [&](Output&& output) {
    if (output.finished()) done.set_value();
    return true;
  });
  done.get_future().wait();
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  gaps.phase = 3;
  engine.shutdown();
  std::printf("%lld streams, chunks of %lld tokens, %lld threads\n", static_cast<long long>(streams),
              static_cast<long long>(*engine.server_args().chunked_prefill_size),
              static_cast<long long>(*engine.server_args().num_threads));
  print("alone", gaps.phases[1]);
  print("beside the prompt", gaps.phases[2]);
  std::printf("prompt of %lld tokens: %.2f s to its token, %.0f tokens/s beside %lld tokens of the streams\n",
              static_cast<long long>(prompt), seconds, static_cast<double>(prompt) / seconds,
              static_cast<long long>(gaps.tokens[2]));
  return 0;
}

}  // namespace
}  // namespace tokenmill::bench

int main(int count, char** arguments) {
  std::map<std::string, std::string> flags;
  for (int i = 1; i + 1 < count; i += 2) flags[arguments[i]] = arguments[i + 1];
  for (const auto& [name, value] : flags) {
    static const std::vector<std::string> known = {"--model", "--streams", "--prompt", "--tokens",
                                                   "--chunk", "--threads", "--context"};
    if (std::find(known.begin(), known.end(), name) == known.end()) flags.clear();
  }
  if (count % 2 == 0 || flags.count("--model") == 0) {
    std::fprintf(stderr,
                 "usage: stream_gaps --model PATH [--streams 16] [--prompt 32000] [--tokens 200] [--chunk 0] "
                 "[--threads 0] [--context 0]\n");
    return 2;
  }
  try {
    return tokenmill::bench::run(std::move(flags));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "stream_gaps: %s\n", error.what());
    return 1;
  }
}
