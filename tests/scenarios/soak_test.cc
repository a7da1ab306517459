// No lack of memory whatever comes, on a tiny real model: very many prompts in a small pool, and requests that can
// never all end. TOKENMILL_SOAK_PROMPTS: 800, nightly 100,000. TOKENMILL_SOAK_MODEL: another model for the prompts;
// TOKENMILL_SOAK_DEVICE: another device for all of it.
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <random>

#include "tokenmill/engine.h"

namespace tokenmill::testing {
namespace {

using Clock = std::chrono::steady_clock;

int64_t soak_prompts() {
  const char* text = std::getenv("TOKENMILL_SOAK_PROMPTS");
  return text ? std::atoll(text) : 800;
}

double resident_mib() {
  std::ifstream statm("/proc/self/statm");
  int64_t total = 0, resident = 0;
  statm >> total >> resident;
  return static_cast<double>(resident * sysconf(_SC_PAGESIZE)) / (1 << 20);
}

ServerArgs tiny_args() {
  ServerArgs args;
  args.model_path = std::string(TOKENMILL_TEST_DATA) + "/tiny/llama-tied";
  args.json_model_override_args = R"({"max_position_embeddings": 131072})";
  args.skip_tokenizer_init = true;
  args.log_level = "error";
  args.random_seed = 1;
  const char* const device = std::getenv("TOKENMILL_SOAK_DEVICE");
  args.device = device ? device : "cpu";
  return args;
}

struct Soak {
  int64_t finished = 0, right = 0;
  double seconds = 0, resident_early = 0, resident_most = 0, mean_batch = 0;
  std::map<std::string, double> stats;
};

// Lengths 8 to 400, 1 to 200 new tokens, all in one call.
Soak run_soak(const ServerArgs& args, int64_t count) {
  Engine engine(args);
  std::mt19937_64 random(1);
  std::vector<Request> requests(static_cast<size_t>(count));
  std::vector<int16_t> wanted(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    std::vector<int32_t> ids(8 + random() % 393);
    for (int32_t& id : ids) id = static_cast<int32_t>(random() % 384);
    requests[i].input_ids = std::move(ids);
    wanted[i] = static_cast<int16_t>(1 + random() % 200);
    requests[i].sampling_params.max_new_tokens = wanted[i];
    requests[i].sampling_params.ignore_eos = true;
    requests[i].sampling_params.temperature = 0;
  }
  Soak soak;
  std::promise<void> done;
  const auto start = Clock::now();
  engine.submit(std::move(requests), [&](Output&& output) {
    ++soak.finished;
    const FinishReason& reason = *output.meta_info.finish_reason;
    soak.right += reason.type == FinishReason::Type::kLength &&
                  static_cast<int64_t>(output.output_ids.size()) == wanted[static_cast<size_t>(output.index)];
    if (soak.finished >= std::min<int64_t>(1000, count / 4) && soak.finished % 100 == 0) {
      const double resident = resident_mib();
      if (soak.resident_early == 0) soak.resident_early = resident;
      soak.resident_most = std::max(soak.resident_most, resident);
    }
    if (soak.finished == count) done.set_value();
    return true;
  });
  done.get_future().wait();
  soak.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  engine.flush_cache();
  soak.stats = engine.stats();
  soak.mean_batch = soak.stats.at("batch_size_sum") / soak.stats.at("batch_size_count");
  return soak;
}

void print(const char* name, const Soak& soak) {
  std::printf(
      "[ %s ] %.1f s, mean batch %.1f, retractions %.0f, evicted blocks %.0f, resident %.1f then at most %.1f MiB\n",
      name, soak.seconds, soak.mean_batch, soak.stats.at("retractions"), soak.stats.at("evictions"),
      soak.resident_early, soak.resident_most);
}

TEST(EngineSoak, ManyPromptsInAQuarterOfThePoolTheyWant) {
  const int64_t count = soak_prompts(), running = 64, mean_length = 204 + 100;
  ServerArgs args = tiny_args();
  if (const char* model = std::getenv("TOKENMILL_SOAK_MODEL")) {
    args.model_path = model;
    args.json_model_override_args = "{}";
  }
  args.max_running_requests = running;
  args.max_total_tokens = running * mean_length / 4;
  const Soak small = run_soak(args, count);
  print("small pool", small);
  EXPECT_EQ(small.finished, count);
  EXPECT_EQ(small.right, count);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_LE(small.resident_most, small.resident_early * 1.05);
#endif
  args.max_total_tokens = 2 * running * 600;
  args.max_running_requests = std::max<int64_t>(1, std::llround(small.mean_batch));
  const Soak roomy = run_soak(args, count);
  print("roomy pool", roomy);
  EXPECT_EQ(roomy.right, count);
  std::printf("[ time of the small pool over the roomy one's, same mean batch ] %.3f\n", small.seconds / roomy.seconds);
}

// A model that costs next to nothing, with weights drawn at random: what is under test is the engine around it.
ServerArgs least_args(const std::string& folder) {
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/config.json") << R"({
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "vocab_size": 256,
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 131072, "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0, "tie_word_embeddings": true})";
  ServerArgs args;
  args.model_path = folder;
  args.load_format = "dummy";
  args.skip_tokenizer_init = true;
  args.num_threads = 1;
  args.log_level = "error";
  args.random_seed = 1;
  return args;
}

// Each wants more than four times what the pool holds. One ends by its own abort when it is alone and the pool is full.
TEST(EngineSoak, RequestsThatCanNeverAllEnd) {
  const bool nightly = soak_prompts() >= 10000;
  const int64_t pool = nightly ? 20000 : 5000, count = nightly ? 256 : 8;
  ServerArgs args = least_args(::testing::TempDir() + "soak_test_least_model");
  args.max_total_tokens = pool;
  if (!nightly) args.schedule_conservativeness = 0.1;  // several at once in the small pool, too
  Engine engine(args);
  std::vector<Request> requests(static_cast<size_t>(count));
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].input_ids = std::vector<int32_t>{1, static_cast<int32_t>(i), 3, 4, 5};
    requests[i].sampling_params.max_new_tokens = 90000;
    requests[i].sampling_params.ignore_eos = true;
  }
  const auto start = Clock::now();
  const auto outputs = engine.generate(requests);
  int64_t aborted = 0, tokens = 0;
  for (const Output& output : outputs) {
    const FinishReason& reason = *output.meta_info.finish_reason;
    tokens += output.meta_info.completion_tokens;
    EXPECT_EQ(static_cast<int64_t>(output.output_ids.size()), output.meta_info.completion_tokens);
    if (reason.type == FinishReason::Type::kAbort) {
      ++aborted;
      EXPECT_NE(reason.message.find("cannot grow past"), std::string::npos) << reason.message;
      EXPECT_GE(output.meta_info.completion_tokens, pool - 64);
    } else {
      EXPECT_EQ(reason.type, FinishReason::Type::kLength);
    }
  }
  EXPECT_GT(engine.stats().at("retractions"), 0);
  std::printf("[ never all ] %lld requests, %lld aborted, %lld tokens, %.0f retractions, %.1f s\n",
              static_cast<long long>(count), static_cast<long long>(aborted), static_cast<long long>(tokens),
              engine.stats().at("retractions"), std::chrono::duration<double>(Clock::now() - start).count());
  Request small;
  small.input_ids = {1, 2, 3};
  small.sampling_params.max_new_tokens = 4;
  small.sampling_params.ignore_eos = true;
  EXPECT_EQ(engine.generate(small)[0].output_ids.size(), 4u);
}

}  // namespace
}  // namespace tokenmill::testing
