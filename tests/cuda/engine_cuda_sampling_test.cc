// Every sampling parameter through the whole engine on a CUDA device: the CPU's tokens, texts, ends and logprobs.
//
// Logits of the two differ in their last bits, so that a draw at a border may fall the other way. That this is all that
// may differ is shown twice: the CPU's sampling of the device's very logits gives the device's token, always; and where
// a sequence leaves the CPU's, the two rows of logits it was drawn from are equal to within rounding.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "cuda/tiny_args.h"
#include "engine/engine_core.h"
#include "engine/engine_impl.h"
#include "engine/resolve_args.h"
#include "models/model.h"
#include "ops/backend_registry.h"
#include "tokenmill/engine.h"
#include "util/forwarding_backend.h"

namespace tokenmill::testing {
namespace {

ServerArgs args_with_text(const std::string& device) {
  ServerArgs args = args_for("stories260k", device);
  args.tokenizer_path = (std::filesystem::path(TOKENMILL_TEST_DATA) / "text" / "bpe").string();
  args.skip_tokenizer_init = false;
  args.max_total_tokens = 1 << 13;
  return args;
}

using DrawKey = std::tuple<uint64_t, uint32_t, uint32_t>;  // seed, sample index, position

struct Draws {
  std::map<DrawKey, std::vector<float>> logits;  // as they came to the sampling
  int rows = 0, differing = 0;                   // from the CPU's sampling of them
};

// Notes the logits of every draw, and draws from them on the CPU, too.
class WatchedBackend final : public ForwardingBackend {
 public:
  WatchedBackend(std::unique_ptr<Backend> inner, Draws& draws) : ForwardingBackend(std::move(inner)), draws_(draws) {}

  bool overlaps() const override { return false; }  // whose sampling is one call
  void sample(Matrix logits, std::span<const SamplingRow> rows, std::span<SampledToken> out) override {
    const size_t width = static_cast<size_t>(logits.cols);
    std::vector<float> values(rows.size() * width);
    for (size_t i = 0; i < rows.size(); ++i) {
      copy_to_host(&values[i * width], logits.row<float>(static_cast<int64_t>(i)), width * sizeof(float));
      draws_.logits[{rows[i].seed, rows[i].sample_index, rows[i].position}].assign(&values[i * width],
                                                                                   &values[i * width] + width);
    }
    inner().sample(logits, rows, out);
    std::vector<SampledToken> want(rows.size());
    cpu_->sample({values.data(), logits.rows, logits.cols, logits.cols, DType::kF32}, rows, want);
    for (size_t i = 0; i < rows.size(); ++i) {
      ++draws_.rows;
      draws_.differing += out[i].token != want[i].token || out[i].invalid != want[i].invalid;
    }
  }

 private:
  Draws& draws_;
  std::unique_ptr<Backend> cpu_ = make_backend("cpu", {.num_threads = 1, .isa = ""});
};

Engine watched_engine(const std::string& device, Draws& draws) {
  const ServerArgs args = resolve_server_args(args_with_text(device));
  const auto checkpoint = Checkpoint::open(args.model_path, {});
  EngineParts parts;
  parts.backend = std::make_unique<WatchedBackend>(make_backend(device, CpuOptions{}), draws);
  parts.model = load_model(*checkpoint, *parts.backend, Packing::kFloat32, nullptr);
  parts.tokenizer = Tokenizer::from_folder(*args.tokenizer_path);
  auto core = std::make_shared<EngineCore>(args, std::move(parts));
  core->start();
  return Engine(std::make_shared<Engine::Impl>(core));
}

// The rows of logits from which the two sequences' first different tokens were drawn.
void expect_drawn_from_equal_logits(const Request& request, uint32_t sample_index, const std::vector<int32_t>& a,
                                    const std::vector<int32_t>& b, const Draws& cpu, const Draws& cuda) {
  const auto first = std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
  const DrawKey key{static_cast<uint64_t>(*request.sampling_params.sampling_seed), sample_index,
                    static_cast<uint32_t>(request.input_ids->size() + static_cast<size_t>(first))};
  ASSERT_TRUE(cpu.logits.contains(key) && cuda.logits.contains(key)) << "token " << first;
  const std::vector<float>&x = cpu.logits.at(key), &y = cuda.logits.at(key);
  float distance = 0;
  for (size_t i = 0; i < x.size(); ++i) distance = std::max(distance, std::abs(x[i] - y[i]));
  EXPECT_GT(distance, 0) << "equal logits must give equal tokens";
  EXPECT_LT(distance, 1e-3);
  std::printf("[ sampling ] token %d differs; logits by up to %.1e\n", static_cast<int>(first),
              static_cast<double>(distance));
}

struct Feature {
  const char* name;
  std::function<void(SamplingParams&)> set;
};

const Feature kFeatures[] = {
    {"greedy", [](SamplingParams& p) { p.temperature = 0; }},
    {"temperature", [](SamplingParams& p) { p.temperature = 0.7; }},
    {"top_k", [](SamplingParams& p) { p.top_k = 5; }},
    {"top_p", [](SamplingParams& p) { p.top_p = 0.8; }},
    {"min_p", [](SamplingParams& p) { p.min_p = 0.1; }},
    {"all cuts",
     [](SamplingParams& p) {
       p.top_k = 20;
       p.top_p = 0.9;
       p.min_p = 0.02;
     }},
    {"frequency_penalty", [](SamplingParams& p) { p.frequency_penalty = 1.5; }},
    {"presence_penalty", [](SamplingParams& p) { p.presence_penalty = -1; }},
    {"repetition_penalty", [](SamplingParams& p) { p.repetition_penalty = 1.4; }},
    {"min_new_tokens",
     [](SamplingParams& p) {
       p.min_new_tokens = 12;
       p.stop_token_ids = {5, 17, 29, 40};
       p.ignore_eos = false;
     }},
    {"stop", [](SamplingParams& p) { p.stop = {"a", "e "}; }},
    {"stop_regex", [](SamplingParams& p) { p.stop_regex = {"[aeiou]{2}"}; }},
    {"n", [](SamplingParams& p) { p.n = 3; }},
    {"logit_bias", [](SamplingParams& p) { p.logit_bias = {{7, 3.0}, {300, -4.0}, {21, 2.5}}; }},
    {"bad_words", [](SamplingParams& p) { p.bad_words = {"a", "the", "e"}; }},
    {"allowed_token_ids", [](SamplingParams& p) { p.allowed_token_ids = {{3, 50, 99, 120, 301}}; }},
    {"custom_logit_processor",
     [](SamplingParams& p) {
       p.custom_logit_processor =
           std::make_shared<const LogitProcessor>([](std::span<const int32_t> ids, std::span<float> logits) {
             for (size_t i = ids.size() % 3; i < logits.size(); i += 3) logits[i] -= 2;
           });
     }},
};

std::vector<Request> requests_with(const Feature& feature, int64_t vocab) {
  std::mt19937_64 random(11);
  std::vector<Request> requests(8);
  for (size_t i = 0; i < requests.size(); ++i) {
    std::vector<int32_t> ids(3 + random() % 40);
    for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint64_t>(vocab));
    requests[i].input_ids = std::move(ids);
    SamplingParams& params = requests[i].sampling_params;
    params.max_new_tokens = 24;
    params.ignore_eos = true;
    params.sampling_seed = 100 + i;
    requests[i].return_logprob = true;
    requests[i].top_logprobs_num = 3;
    requests[i].token_ids_logprob = {1, 77};
    feature.set(params);
  }
  return requests;
}

void expect_near(const std::vector<TokenLogprob>& got, const std::vector<TokenLogprob>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].token_id, want[i].token_id) << i;
    ASSERT_EQ(got[i].logprob.has_value(), want[i].logprob.has_value()) << i;
    EXPECT_NEAR(got[i].logprob.value_or(0), want[i].logprob.value_or(0), 2e-3) << i;
  }
}

TEST(EngineCudaSampling, EveryParameterIsTheCpus) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "not run: no CUDA device";
  Draws cpu_draws, cuda_draws;
  Engine cpu = watched_engine("cpu", cpu_draws), cuda = watched_engine("cuda", cuda_draws);
  int sequences = 0, differing = 0;
  for (const Feature& feature : kFeatures) {
    SCOPED_TRACE(feature.name);
    const std::vector<Request> requests = requests_with(feature, cpu.vocab_size());
    cpu_draws.logits.clear();
    cuda_draws.logits.clear();
    const std::vector<Output> want = cpu.generate(requests), got = cuda.generate(requests);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) {
      SCOPED_TRACE(i);
      ++sequences;
      const MetaInfo &a = want[i].meta_info, &b = got[i].meta_info;
      ASSERT_NE(a.finish_reason->type, FinishReason::Type::kAbort) << a.finish_reason->message;
      if (got[i].output_ids != want[i].output_ids) {
        ++differing;
        const size_t n = want.size() / requests.size();
        expect_drawn_from_equal_logits(requests[i / n], static_cast<uint32_t>(i % n), want[i].output_ids,
                                       got[i].output_ids, cpu_draws, cuda_draws);
        continue;
      }
      EXPECT_EQ(got[i].text, want[i].text);
      EXPECT_EQ(b.finish_reason->type, a.finish_reason->type);
      expect_near(b.output_token_logprobs, a.output_token_logprobs);
      ASSERT_EQ(b.output_token_ids_logprobs.size(), a.output_token_ids_logprobs.size());
      for (size_t t = 0; t < a.output_token_ids_logprobs.size(); ++t) {
        expect_near(b.output_token_ids_logprobs[t], a.output_token_ids_logprobs[t]);
      }
    }
  }
  EXPECT_LE(differing, sequences / 100) << "of " << sequences;
  EXPECT_EQ(cpu_draws.differing, 0);
  EXPECT_EQ(cuda_draws.differing, 0) << "of " << cuda_draws.rows << " draws from the same logits";
  EXPECT_GT(cuda_draws.rows, 3000);
  std::printf("[ sampling ] %d of %d sequences differ from the CPU's, %d of %d draws from the same logits\n", differing,
              sequences, cuda_draws.differing, cuda_draws.rows);
}

}  // namespace
}  // namespace tokenmill::testing
