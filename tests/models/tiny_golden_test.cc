// Every tiny checkpoint, in both spellings of config.json, on the naive, the CPU and the CUDA backend, against
// transformers' numbers (tests/data/tiny/*/golden.json).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <string>
#include <tuple>

#include "models/model_test_util.h"
#include "ops/backend_registry.h"

namespace tokenmill::test {
namespace {

constexpr float kTolerance = 2e-3f;
const std::filesystem::path kTinyFolder = std::filesystem::path(TOKENMILL_TEST_DATA) / "tiny";

std::vector<std::string> tiny_models() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(kTinyFolder)) {
    if (std::filesystem::exists(entry.path() / "golden.json")) names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  float largest = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) largest = std::max(largest, std::fabs(a[i] - b[i]));
  return largest;
}

class TinyGolden : public testing::TestWithParam<std::tuple<std::string, std::string, BackendKind>> {};

TEST_P(TinyGolden, MatchesTransformers) {
  const auto& [name, config_file, kind] = GetParam();
  if (kind == BackendKind::kCuda && num_cuda_devices() == 0) GTEST_SKIP() << "not run: no CUDA device";
  const std::filesystem::path source = kTinyFolder / name;
  TemporaryFolder folder;
  for (const char* file : {"model.safetensors", "generation_config.json"}) {
    std::filesystem::copy_file(source / file, folder.path() / file);
  }
  std::filesystem::copy_file(source / config_file, folder.path() / "config.json");

  const auto checkpoint = Checkpoint::open(folder.path().string(), {});
  const auto probe = make_probe(*checkpoint, make_backend(kind, 2), Packing::kFloat32,
                                {.num_sequences = 1, .tokens_max = 448, .chunk_tokens = 48, .page_size = 16});
  const nlohmann::json file = read_json(source / "golden.json");
  ASSERT_GE(file.at("prompts").size(), 3u);
  for (const nlohmann::json& golden : file.at("prompts")) {
    const auto ids = golden.at("prompt_ids").get<std::vector<int32_t>>();
    SCOPED_TRACE(std::to_string(ids.size()) + " ids");
    std::vector<float> logits;
    std::vector<int32_t> best;
    float largest_logprob_error = 0;
    probe->truncate(0, 0);
    const std::vector<float> hidden = probe->feed(0, ids, [&](size_t i, std::span<const float> row) {
      best.push_back(argmax(row));
      logits.assign(row.begin(), row.end());
      if (i + 1 == ids.size()) return;
      const float want = golden.at("prompt_logprobs").at(i + 1).get<float>();
      largest_logprob_error = std::max(largest_logprob_error, std::fabs(logprob_of(row, ids[i + 1]) - want));
    });
    EXPECT_LE(largest_difference(logits, floats_of_base64(golden.at("last_logits_f32_b64"))), kTolerance);
    const std::vector<float> want_hidden = floats_of_base64(golden.at("last_hidden_f32_b64"));
    float scale = 1;
    for (const float value : want_hidden) scale = std::max(scale, std::fabs(value));
    EXPECT_LE(largest_difference(hidden, want_hidden), kTolerance * scale);
    EXPECT_LE(largest_logprob_error, 2 * kTolerance);
    const auto want_best = golden.at("argmax_per_pos").get<std::vector<int32_t>>();
    ASSERT_EQ(best.size(), want_best.size());
    int differing = 0;
    for (size_t i = 0; i < best.size(); ++i) differing += best[i] != want_best[i];
    EXPECT_LE(differing, 1);  // one near tie in 130 may fall the other way

    const auto greedy = golden.at("greedy16").get<std::vector<int32_t>>();
    const auto gaps = golden.at("greedy_logit_gaps").get<std::vector<float>>();
    for (size_t step = 0; step < greedy.size(); ++step) {
      const int32_t token = argmax(logits);
      if (token != greedy[step]) {
        EXPECT_LT(gaps[step], 2 * kTolerance) << "greedy step " << step;
        break;
      }
      const Probe::Next next{0, token};
      probe->decode(std::span(&next, 1),
                    [&](size_t, std::span<const float> row) { logits.assign(row.begin(), row.end()); });
    }
  }
}

// In bf16 and fp16 the last logits stay near transformers' fp32 ones: rounding of inputs and KV, nothing more.
class TinyGoldenRounded : public testing::TestWithParam<std::tuple<std::string, BackendKind, Packing>> {};

TEST_P(TinyGoldenRounded, NearTransformers) {
  const auto& [name, kind, packing] = GetParam();
  if (kind == BackendKind::kCuda && num_cuda_devices() == 0) GTEST_SKIP() << "not run: no CUDA device";
  const auto checkpoint = Checkpoint::open((kTinyFolder / name).string(), {});
  const auto probe = make_probe(*checkpoint, make_backend(kind, 2), packing,
                                {.num_sequences = 1, .tokens_max = 448, .chunk_tokens = 48, .page_size = 16});
  const nlohmann::json file = read_json(kTinyFolder / name / "golden.json");
  double difference = 0, size = 0;
  for (const nlohmann::json& golden : file.at("prompts")) {
    const auto ids = golden.at("prompt_ids").get<std::vector<int32_t>>();
    const std::vector<float> want = floats_of_base64(golden.at("last_logits_f32_b64"));
    probe->truncate(0, 0);
    probe->feed(0, ids, [&](size_t i, std::span<const float> row) {
      if (i + 1 < ids.size()) return;
      ASSERT_EQ(row.size(), want.size());
      for (size_t v = 0; v < want.size(); ++v) {
        difference += std::pow(double{row[v]} - want[v], 2);
        size += double{want[v]} * want[v];
      }
    });
  }
  EXPECT_GT(size, 0);
  // Trained weights, stored in fp32, lose more: 3.1 % on the CPU. The random models' are bf16 already (1.5 % at most).
  const double bound = name == "stories260k" ? 0.05 : 0.03;
  EXPECT_LT(std::sqrt(difference / size), packing == Packing::kFloat16 ? bound / 6 : bound);
}

std::string test_name(const testing::TestParamInfo<TinyGolden::ParamType>& info) {
  const auto& [name, config_file, kind] = info.param;
  const char* const backend = kind == BackendKind::kNaive ? "_naive" : kind == BackendKind::kCpu ? "_cpu" : "_cuda";
  std::string text = name + (config_file == "config.json" ? "_v5" : "_v4") + backend;
  std::replace(text.begin(), text.end(), '-', '_');
  return text;
}

INSTANTIATE_TEST_SUITE_P(All, TinyGolden,
                         testing::Combine(testing::ValuesIn(tiny_models()),
                                          testing::Values("config.json", "config.v4.json"),
                                          testing::Values(BackendKind::kNaive, BackendKind::kCpu, BackendKind::kCuda)),
                         test_name);

std::string rounded_name(const testing::TestParamInfo<TinyGoldenRounded::ParamType>& info) {
  const auto& [name, kind, packing] = info.param;
  std::string text = name;
  std::replace(text.begin(), text.end(), '-', '_');
  return text + (kind == BackendKind::kCpu ? "_cpu" : "_cuda") + (packing == Packing::kFloat16 ? "_float16" : "");
}

INSTANTIATE_TEST_SUITE_P(All, TinyGoldenRounded,
                         testing::Combine(testing::ValuesIn(tiny_models()),
                                          testing::Values(BackendKind::kCpu, BackendKind::kCuda),
                                          testing::Values(Packing::kBFloat16)),
                         rounded_name);
INSTANTIATE_TEST_SUITE_P(Float16, TinyGoldenRounded,
                         testing::Combine(testing::ValuesIn(tiny_models()), testing::Values(BackendKind::kCuda),
                                          testing::Values(Packing::kFloat16)),
                         rounded_name);

// An empty folder would make no instances, and so no failures.
TEST(TinyGoldenData, AllFamiliesAreThere) {
  const std::vector<std::string> names = tiny_models();
  for (const char* name : {"gemma3", "llama-bias", "llama-rope3", "llama-tied", "llama-untied", "llama-yarn",
                           "mistral-swa", "qwen2", "qwen3", "stories260k"}) {
    EXPECT_TRUE(std::find(names.begin(), names.end(), name) != names.end()) << name;
  }
}

}  // namespace
}  // namespace tokenmill::test
