// Models of drawn shapes (odd hidden, intermediate and vocabulary sizes, any even head size, any ratio of query to KV
// heads) with seeded random weights: the CPU backend in fp32 against the naive one.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <random>
#include <string>

#include "models/model_test_util.h"

namespace tokenmill::test {
namespace {

constexpr int kShapes = 24;
constexpr size_t kPrompt = 45, kDecodes = 5;

nlohmann::json random_config(std::mt19937& random) {
  const auto draw = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
  };
  static const char* const kArchitectures[] = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM",
                                               "Qwen3ForCausalLM", "Gemma3ForCausalLM"};
  static const char* const kTypes[] = {"llama", "mistral", "qwen2", "qwen3", "gemma3_text"};
  const int64_t family = draw(0, 4), layers = draw(1, 3), kv_heads = draw(1, 3);
  nlohmann::json config = {{"architectures", {kArchitectures[family]}},
                           {"model_type", kTypes[family]},
                           {"hidden_size", draw(3, 150)},
                           {"intermediate_size", draw(1, 200)},
                           {"vocab_size", draw(5, 400)},
                           {"num_hidden_layers", layers},
                           {"num_key_value_heads", kv_heads},
                           {"num_attention_heads", kv_heads * draw(1, 7)},
                           {"head_dim", 2 * (draw(0, 3) == 0 ? draw(33, 128) : draw(1, 40))},
                           {"max_position_embeddings", 512},
                           {"rms_norm_eps", 1e-5},
                           {"rope_theta", 10000.0},
                           {"tie_word_embeddings", draw(0, 1) == 1},
                           {"torch_dtype", "float32"}};
  if (family == 4) {
    config["hidden_activation"] = "gelu_pytorch_tanh";
    config["query_pre_attn_scalar"] = draw(8, 64);
    config["rope_local_base_freq"] = 5000.0;
    config["sliding_window"] = draw(2, 40);
    config["attn_logit_softcapping"] = nullptr;
    config["final_logit_softcapping"] = draw(0, 1) ? nlohmann::json(3.0) : nlohmann::json(nullptr);
    config["layer_types"] = nlohmann::json::array();
    for (int64_t i = 0; i < layers; ++i) {
      config["layer_types"].push_back(draw(0, 1) ? "sliding_attention" : "full_attention");
    }
  } else {
    config["hidden_act"] = "silu";
  }
  if (family == 0) config["attention_bias"] = draw(0, 1) == 1, config["mlp_bias"] = draw(0, 1) == 1;
  if (family == 1) config["sliding_window"] = draw(2, 40);
  return config;
}

// Logits after every prompt id and every decode, with the prompt cut into drawn chunks.
std::vector<std::vector<float>> run(const Checkpoint& checkpoint, BackendKind kind, const std::vector<int32_t>& ids,
                                    int32_t page_size, int64_t chunk) {
  const auto probe = make_probe(checkpoint, make_backend(kind, 2), Packing::kFloat32,
                                {.num_sequences = 1,
                                 .tokens_max = static_cast<int64_t>(ids.size()),
                                 .chunk_tokens = chunk,
                                 .page_size = page_size});
  std::vector<std::vector<float>> rows(ids.size());
  probe->feed(0, std::span(ids).first(kPrompt),
              [&](size_t i, std::span<const float> logits) { rows[i].assign(logits.begin(), logits.end()); });
  for (size_t step = kPrompt; step < ids.size(); ++step) {
    const Probe::Next next{0, ids[step]};
    probe->decode(std::span(&next, 1),
                  [&](size_t, std::span<const float> logits) { rows[step].assign(logits.begin(), logits.end()); });
  }
  return rows;
}

class RandomShapes : public testing::TestWithParam<int> {};

TEST_P(RandomShapes, CpuMatchesNaive) {
  std::mt19937 random(static_cast<uint32_t>(1000 + GetParam()));
  const nlohmann::json config = random_config(random);
  SCOPED_TRACE(config.dump());
  TemporaryFolder folder;
  std::ofstream(folder.path() / "config.json") << config.dump();
  CheckpointOptions options;
  options.load_format = "dummy";
  options.dummy_seed = static_cast<uint64_t>(GetParam());
  const auto checkpoint = Checkpoint::open(folder.path().string(), options);
  const std::vector<int32_t> ids =
      random_ids(static_cast<uint32_t>(GetParam()), kPrompt + kDecodes, checkpoint->config().vocab_size);
  static const int32_t kPageSizes[] = {1, 16, 32};
  const auto want = run(*checkpoint, BackendKind::kNaive, ids, 16, 64);
  const auto got = run(*checkpoint, BackendKind::kCpu, ids, kPageSizes[random() % 3], 1 + random() % 50);
  for (size_t i = 0; i < ids.size(); ++i) {
    float scale = 0, error = 0;
    ASSERT_EQ(want[i].size(), static_cast<size_t>(checkpoint->config().vocab_size));
    ASSERT_EQ(got[i].size(), want[i].size());
    for (size_t v = 0; v < want[i].size(); ++v) {
      ASSERT_TRUE(std::isfinite(got[i][v]));
      scale = std::max(scale, std::fabs(want[i][v]));
      error = std::max(error, std::fabs(got[i][v] - want[i][v]));
    }
    ASSERT_GT(scale, 0);
    // fp32 sums of a few hundred terms through three layers; a wrong window, pad or head moves far more.
    ASSERT_LE(error, 5e-5f * scale) << "position " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(All, RandomShapes, testing::Range(0, kShapes));

}  // namespace
}  // namespace tokenmill::test
