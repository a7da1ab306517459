// Real models through the whole engine: a request's ids and logprobs have the same bits alone, in a batch, after a
// cache hit, chunked, retracted, at every page size and at 1 and 2 threads. And 1,000 prompts in an eighth of the pool
// they want, on a model small enough for that.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "engine/engine_impl.h"
#include "engine/resolve_args.h"
#include "models/model.h"
#include "models/packing.h"
#include "models/quantized_checkpoint.h"
#include "scenarios/shadow_model.h"
#include "util/beside_backend.h"
#include "verify/probe.h"

namespace tokenmill::testing {
namespace {

// An engine over an opened checkpoint, ids in and out. overlap: each step is launched before the one before it is
// committed.
OpenEngine open_engine(const Checkpoint& checkpoint, const std::string& dtype, ServerArgs args, bool overlap = false) {
  args.model_path = "model";
  args.skip_tokenizer_init = true;
  args.random_seed = 7;
  EngineParts parts;
  parts.backend = make_cpu_backend({.num_threads = static_cast<int>(args.num_threads.value_or(1)), .isa = ""});
  if (overlap) parts.backend = std::make_unique<BesideBackend>(std::move(parts.backend));
  parts.model =
      load_model(checkpoint, *parts.backend, choose_packing(dtype, checkpoint.config(), *parts.backend), nullptr);
  parts.log_sink = [](LogLevel, const std::string&) {};
  return OpenEngine(std::make_shared<EngineCore>(resolve_server_args(std::move(args)), std::move(parts)));
}

// Prompts of mixed length, every third one on the prefix of another, greedy and drawn.
std::vector<Request> mixed_requests(int64_t count, int64_t vocab_size, int64_t prompt_max, int64_t output_max) {
  std::vector<Request> requests;
  for (int64_t i = 0; i < count; ++i) {
    std::vector<int32_t> ids = random_ids(static_cast<uint64_t>(i), 3 + i * 37 % prompt_max, vocab_size);
    if (i % 3 == 2) {
      const std::vector<int32_t>& other = *requests[static_cast<size_t>(i - 2)].input_ids;
      ids.insert(ids.begin(), other.begin(), other.end());
    }
    Request request = ids_request(std::move(ids), 2 + i * 11 % output_max);
    request.sampling_params.temperature = i % 2 == 0 ? 0 : 0.9;
    request.sampling_params.ignore_eos = true;
    request.sampling_params.sampling_seed = static_cast<uint64_t>(i);
    request.return_logprob = true;
    request.top_logprobs_num = std::min<int64_t>(vocab_size, 64);
    requests.push_back(std::move(request));
  }
  return requests;
}

// A pool of an eighth of what `running` requests of mean length want.
int64_t eighth_of_wanted(const std::vector<Request>& requests, int64_t running) {
  int64_t wanted = 0;
  for (const Request& request : requests) {
    wanted += static_cast<int64_t>(request.input_ids->size()) + *request.sampling_params.max_new_tokens;
  }
  return wanted * running / static_cast<int64_t>(requests.size()) / 8;
}

bool same_bits(const TokenLogprob& a, const TokenLogprob& b) {
  return a.token_id == b.token_id && a.logprob && b.logprob &&
         std::memcmp(&*a.logprob, &*b.logprob, sizeof(float)) == 0;
}

// "" or what differs first.
std::string difference(const Output& got, const Output& want) {
  if (got.meta_info.finish_reason->type != want.meta_info.finish_reason->type) return "finish_reason";
  if (got.output_ids != want.output_ids) return "output_ids";
  const auto &tops = got.meta_info.output_top_logprobs, &wanted_tops = want.meta_info.output_top_logprobs;
  if (tops.size() != want.output_ids.size() || wanted_tops.size() != tops.size()) return "number of logprobs";
  for (size_t step = 0; step < tops.size(); ++step) {
    const bool equal =
        same_bits(got.meta_info.output_token_logprobs.at(step), want.meta_info.output_token_logprobs.at(step)) &&
        std::equal(tops[step].begin(), tops[step].end(), wanted_tops[step].begin(), wanted_tops[step].end(), same_bits);
    if (!equal) return "logprobs at step " + std::to_string(step);
  }
  return "";
}

void expect_same(const std::vector<Output>& got, const std::vector<Output>& want, const std::string& how) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(difference(got[i], want[i]), "") << how << ", request " << i;
  }
}

// Each alone, nothing shared, one thread: what all other ways are held against.
std::vector<Output> one_by_one(const Checkpoint& checkpoint, const std::string& dtype,
                               const std::vector<Request>& requests) {
  OpenEngine open = open_engine(
      checkpoint, dtype, {.max_total_tokens = 4096, .disable_radix_cache = true, .page_size = 32, .num_threads = 1});
  std::vector<Output> outputs;
  for (const Request& request : requests) {
    outputs.push_back(open.engine.generate(request).at(0));
    EXPECT_EQ(outputs.back().meta_info.finish_reason->type, FinishReason::Type::kLength);
  }
  return outputs;
}

void expect_same_bits_every_way(const Checkpoint& checkpoint, const std::string& dtype, int64_t count) {
  const auto requests = mixed_requests(count, checkpoint.config().vocab_size, 24, 40);
  const auto want = one_by_one(checkpoint, dtype, requests);
  struct Way {
    int64_t threads, page, chunk;
    bool overlap = false;
  };
  for (const auto& [threads, page, chunk, overlap] :
       {Way{1, 1, 13}, Way{2, 16, 512}, Way{2, 32, 13}, Way{2, 16, 512, true}, Way{1, 32, 13, true}}) {
    const std::string where =
        std::to_string(threads) + " threads, page_size " + std::to_string(page) + (overlap ? ", overlapped" : "");
    OpenEngine open = open_engine(
        checkpoint, dtype,
        {.max_total_tokens = 4096, .chunked_prefill_size = chunk, .page_size = page, .num_threads = threads}, overlap);
    expect_same(open.engine.generate(requests), want, "in a batch, " + where);
    const auto again = open.engine.generate(requests);
    expect_same(again, want, "after a cache hit, " + where);
    for (size_t i = 0; i < again.size(); ++i) {
      EXPECT_EQ(again[i].meta_info.cached_tokens, static_cast<int64_t>(requests[i].input_ids->size()) - 1);
    }
    open.core->check_integrity();
  }
  for (const bool overlap : {false, true}) {
    OpenEngine open = open_engine(
        checkpoint, dtype,
        {.max_total_tokens = 112, .schedule_conservativeness = 0.05, .page_size = 16, .num_threads = 2}, overlap);
    const auto outputs = open.engine.generate(requests);
    expect_same(outputs, want, "in a small pool");
    EXPECT_GT(open.engine.stats().at("retractions"), 0);
    EXPECT_TRUE(std::any_of(outputs.begin(), outputs.end(),
                            [](const Output& output) { return output.meta_info.num_retractions > 0; }));
    open.core->check_integrity();
  }
}

const std::filesystem::path kTinyFolder = std::filesystem::path(TOKENMILL_TEST_DATA) / "tiny";

class EngineBits : public ::testing::TestWithParam<std::tuple<const char*, const char*>> {};

TEST_P(EngineBits, TinyModels) {
  const auto& [name, dtype] = GetParam();
  expect_same_bits_every_way(*Checkpoint::open((kTinyFolder / name).string(), {}), dtype, 24);
}

INSTANTIATE_TEST_SUITE_P(All, EngineBits,
                         ::testing::Combine(::testing::Values("llama-bias", "mistral-swa", "gemma3"),
                                            ::testing::Values("float32", "bfloat16")));

class EngineBitsQuantized : public ::testing::TestWithParam<WeightType> {};

TEST_P(EngineBitsQuantized, TinyModels) {
  expect_same_bits_every_way(test::QuantizedCheckpoint(GetParam(), 5), "auto", 24);
}

INSTANTIATE_TEST_SUITE_P(All, EngineBitsQuantized,
                         ::testing::Values(WeightType::kQ8_0, WeightType::kQ4_1, WeightType::kQ4K, WeightType::kQ6K),
                         [](const auto& info) { return tokenmill::info(info.param).name; });

// What greedy decoding gives over a pool that frees nothing: no scheduler, all layers hold all tokens.
std::vector<int32_t> greedy_without_freeing(Probe& probe, const std::vector<int32_t>& prompt, int64_t count) {
  int32_t next = 0;
  const Probe::OnLogits take = [&](size_t, std::span<const float> logits) { next = argmax(logits); };
  probe.truncate(0, 0);
  probe.feed(0, std::span(prompt).first(prompt.size() - 1), nullptr);  // logits of the last token only
  const Probe::Next last{0, prompt.back()};
  probe.decode(std::span(&last, 1), take);
  std::vector<int32_t> output = {next};
  while (static_cast<int64_t>(output.size()) < count) {
    const Probe::Next token{0, output.back()};
    probe.decode(std::span(&token, 1), take);
    output.push_back(next);
  }
  return output;
}

std::unique_ptr<Probe> make_probe(const Checkpoint& checkpoint, const std::string& dtype, int64_t tokens_max) {
  auto backend = make_cpu_backend({.num_threads = 2, .isa = ""});
  auto model = load_model(checkpoint, *backend, choose_packing(dtype, checkpoint.config(), *backend), nullptr);
  return std::make_unique<Probe>(
      std::move(backend), std::move(model),
      ProbeOptions{.num_sequences = 1, .tokens_max = tokens_max, .chunk_tokens = 256, .page_size = 32});
}

// Prompts far longer than the window, in a pool of the window layers that cannot hold them all: the same tokens as
// without freeing, fresh, from the cache and retracted.
void expect_same_with_freeing(const Checkpoint& checkpoint, const std::string& dtype, int64_t page,
                              int64_t prompt_tokens, int64_t outputs_count, int64_t pool_tokens) {
  const int64_t vocab = checkpoint.config().vocab_size;
  std::vector<Request> requests;
  for (uint64_t i = 0; i < 6; ++i) {
    std::vector<int32_t> ids = random_ids(i % 2, prompt_tokens / 2, vocab);  // three share a first half
    for (const int32_t id : random_ids(10 + i, prompt_tokens / 2, vocab)) ids.push_back(id);
    requests.push_back(ids_request(std::move(ids), outputs_count));
    requests.back().sampling_params.ignore_eos = true;
  }
  const auto probe = make_probe(checkpoint, dtype, prompt_tokens + outputs_count);
  std::vector<std::vector<int32_t>> want;
  for (const Request& request : requests) {
    want.push_back(greedy_without_freeing(*probe, *request.input_ids, outputs_count));
  }
  OpenEngine open = open_engine(checkpoint, dtype,
                                {.max_running_requests = 3,
                                 .max_total_tokens = pool_tokens,
                                 .chunked_prefill_size = 64,
                                 .schedule_conservativeness = 0.05,
                                 .page_size = page,
                                 .num_threads = 2});
  for (int round = 0; round < 3; ++round) {
    const auto got = open.engine.generate(requests);
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_EQ(got[i].output_ids, want[i]) << "round " << round << " request " << i << " page " << page;
    }
    open.core->check_integrity();
  }
  const auto stats = open.engine.stats();
  EXPECT_GT(stats.at("window_blocks_total"), 0);
  EXPECT_LT(stats.at("window_blocks_total"), stats.at("blocks_total"));
  // The window layers' pool is smaller than what three running requests would want without freeing.
  EXPECT_LT(stats.at("window_blocks_total") * static_cast<double>(page),
            static_cast<double>(3 * (prompt_tokens + outputs_count)));
  EXPECT_GT(stats.at("window_evictions"), 0);
  EXPECT_GT(stats.at("cached_tokens"), 0);
}

class EngineWindow : public ::testing::TestWithParam<std::tuple<const char*, int>> {};

TEST_P(EngineWindow, SameTokensAsWithoutFreeing) {
  const auto& [name, page] = GetParam();
  const auto checkpoint = Checkpoint::open((kTinyFolder / name).string(), {});
  for (const char* const dtype : {"float32", "bfloat16"}) {
    expect_same_with_freeing(*checkpoint, dtype, page, 400, 50, 1500);
    expect_same_with_freeing(*checkpoint, dtype, page, 400, 50, 900);  // the full layers retract
  }
}

INSTANTIATE_TEST_SUITE_P(All, EngineWindow,
                         ::testing::Combine(::testing::Values("gemma3", "mistral-swa"),
                                            ::testing::Values(1, 16, 32, 64)));

TEST(EngineWindowReal, Gemma3) {
  const char* const models = std::getenv("TOKENMILL_TEST_MODELS");
  if (models == nullptr) GTEST_SKIP() << "not run: TOKENMILL_TEST_MODELS is not set";
  const std::filesystem::path path = std::filesystem::path(models) / "gemma3-270m-bf16";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "not run: no " << path;
  expect_same_with_freeing(*Checkpoint::open(path.string(), {}), "auto", 32, 1400, 12, 6400);
}

class EngineBitsReal : public ::testing::TestWithParam<const char*> {};

TEST_P(EngineBitsReal, SmolLm2) {
  const char* const models = std::getenv("TOKENMILL_TEST_MODELS");
  if (models == nullptr) GTEST_SKIP() << "not run: TOKENMILL_TEST_MODELS is not set";
  const std::filesystem::path path = std::filesystem::path(models) / GetParam();
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "not run: no " << path;
  expect_same_bits_every_way(*Checkpoint::open(path.string(), {}), "auto", 9);
}

INSTANTIATE_TEST_SUITE_P(All, EngineBitsReal,
                         ::testing::Values("smollm2-135m-bf16", "gguf/SmolLM2-135M-Instruct.Q4_1.gguf"));

int64_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  int64_t total = 0, resident = 0;
  statm >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

// The largest resident size while a list runs in the pool, above the size before.
int64_t run_and_watch(OpenEngine& open, const std::vector<Request>& requests, std::vector<Output>& outputs) {
  const int64_t before = resident_bytes();
  int64_t most = before;
  auto waiting = open.engine.generate_async(requests);
  while (waiting.wait_for(std::chrono::milliseconds(5)) != std::future_status::ready) {
    most = std::max(most, resident_bytes());
  }
  outputs = waiting.get();
  open.core->check_integrity();
  return most - before;
}

TEST(EngineBits, AThousandPromptsInAnEighthOfThePool) {
  const auto checkpoint = Checkpoint::open((kTinyFolder / "stories260k").string(), {});
  auto requests = mixed_requests(1000, checkpoint->config().vocab_size, 40, 60);
  for (Request& request : requests) request.top_logprobs_num = 1;
  constexpr int64_t kRunning = 64;
  const int64_t pool = eighth_of_wanted(requests, kRunning);
  const auto args = [](int64_t tokens) {
    return ServerArgs{.max_running_requests = kRunning,
                      .max_total_tokens = tokens,
                      .schedule_conservativeness = 0.05,
                      .page_size = 16,
                      .num_threads = 2};
  };
  std::vector<Output> small, roomy, again;
  OpenEngine tight = open_engine(*checkpoint, "bfloat16", args(pool));
  (void)run_and_watch(tight, requests, small);
  // What a list needs, its outputs apart, is there after the first: the second may not add to it.
  const int64_t growth = run_and_watch(tight, requests, again);
  const auto stats = tight.engine.stats();
  OpenEngine wide = open_engine(*checkpoint, "bfloat16", args(1 << 16));
  (void)run_and_watch(wide, requests, roomy);
  std::printf("pool %lld tokens, %.0f retractions, %.0f evictions, resident memory grew by %.1f MiB\n",
              static_cast<long long>(pool), stats.at("retractions"), stats.at("evictions"),
              static_cast<double>(growth) / (1 << 20));
  expect_same(small, roomy, "in an eighth of the pool");
  expect_same(again, roomy, "once more");
  EXPECT_GT(stats.at("retractions"), 0);
  EXPECT_EQ(wide.engine.stats().at("retractions"), 0);
  EXPECT_EQ(stats.at("finished"), 2000);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_LT(growth, 16 << 20);
#endif
}

}  // namespace
}  // namespace tokenmill::testing
