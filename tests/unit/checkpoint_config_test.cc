// config.json -> ModelConfig: both spellings, every family's own keys, and every refusal's message.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "checkpoint/checkpoint.h"
#include "checkpoint/config_json.h"
#include "util/expect_error.h"
#include "util/temp_folder.h"

namespace tokenmill {
namespace {

using nlohmann::json;
using testing::read_file;

const std::string kTiny = TOKENMILL_TEST_DATA "/tiny/";

json tiny_json(const std::string& name, const char* file = "config.json") {
  return json::parse(read_file(kTiny + name + "/" + file));
}
ModelConfig parse(const json& config) { return parse_model_config(config, "F/config.json").config; }

void expect_same_rope(const RopeConfig& a, const RopeConfig& b) {
  EXPECT_EQ(a.theta, b.theta);
  EXPECT_EQ(a.scaling, b.scaling);
  EXPECT_EQ(a.factor, b.factor);
  EXPECT_EQ(a.original_max_position, b.original_max_position);
  EXPECT_EQ(a.low_freq_factor, b.low_freq_factor);
  EXPECT_EQ(a.high_freq_factor, b.high_freq_factor);
  EXPECT_EQ(a.beta_fast, b.beta_fast);
  EXPECT_EQ(a.attention_factor, b.attention_factor);
}

// What the table below does not say is checked to be the family's usual.
struct Row {
  const char* name;
  const char* architecture;
  WeightType dtype;
  bool tied;
  int64_t head_dim, num_layers, intermediate;
  double theta;
  RopeScaling scaling;
  bool qkv_bias, o_bias, mlp_bias, qk_norm;
  std::vector<int32_t> windows;
};

class TinyConfig : public ::testing::TestWithParam<Row> {};

TEST_P(TinyConfig, BothSpellings) {
  const Row& row = GetParam();
  for (const char* file : {"config.json", "config.v4.json"}) {
    SCOPED_TRACE(file);
    const ModelConfig c = parse(tiny_json(row.name, file));
    EXPECT_EQ(c.architecture, row.architecture);
    EXPECT_EQ(c.dtype, row.dtype);
    EXPECT_EQ(c.tie_word_embeddings, row.tied);
    EXPECT_EQ(c.hidden_size, 64);
    EXPECT_EQ(c.intermediate_size, row.intermediate);
    EXPECT_EQ(c.num_layers, row.num_layers);
    EXPECT_EQ(c.head_dim, row.head_dim);
    EXPECT_EQ(c.num_heads, 2 * c.num_kv_heads);
    EXPECT_EQ(c.rope.theta, row.theta);
    EXPECT_EQ(c.rope.scaling, row.scaling);
    EXPECT_EQ(c.qkv_bias, row.qkv_bias);
    EXPECT_EQ(c.o_bias, row.o_bias);
    EXPECT_EQ(c.mlp_bias, row.mlp_bias);
    EXPECT_EQ(c.qk_norm, row.qk_norm);
    EXPECT_EQ(c.layer_window, row.windows);
    EXPECT_EQ(c.eos_token_ids, std::vector<int32_t>{2});
    EXPECT_EQ(c.bos_token_id, 1);
    EXPECT_DOUBLE_EQ(c.attention_scale, 1 / std::sqrt(static_cast<double>(row.head_dim)));
    EXPECT_FALSE(c.quantized);
  }
}

const std::vector<int32_t> kFull3 = {0, 0, 0};
INSTANTIATE_TEST_SUITE_P(All, TinyConfig,
                         ::testing::Values(Row{"llama-tied", "LlamaForCausalLM", WeightType::kBF16, true, 16, 3, 160,
                                               1e4, RopeScaling::kNone, false, false, false, false, kFull3},
                                           Row{"llama-untied", "LlamaForCausalLM", WeightType::kF32, false, 16, 3, 160,
                                               1e4, RopeScaling::kNone, false, false, false, false, kFull3},
                                           Row{"llama-rope3", "LlamaForCausalLM", WeightType::kBF16, false, 16, 3, 160,
                                               5e5, RopeScaling::kLlama3, false, false, false, false, kFull3},
                                           Row{"llama-yarn", "LlamaForCausalLM", WeightType::kBF16, false, 16, 3, 160,
                                               1e4, RopeScaling::kYarn, false, false, false, false, kFull3},
                                           Row{"llama-bias", "LlamaForCausalLM", WeightType::kBF16, false, 16, 3, 160,
                                               1e4, RopeScaling::kNone, true, true, true, false, kFull3},
                                           Row{"mistral-swa",
                                               "MistralForCausalLM",
                                               WeightType::kBF16,
                                               false,
                                               32,
                                               3,
                                               160,
                                               1e4,
                                               RopeScaling::kNone,
                                               false,
                                               false,
                                               false,
                                               false,
                                               {32, 32, 32}},
                                           Row{"qwen2", "Qwen2ForCausalLM", WeightType::kF16, true, 16, 3, 160, 1e4,
                                               RopeScaling::kNone, true, false, false, false, kFull3},
                                           Row{"qwen3", "Qwen3ForCausalLM", WeightType::kBF16, true, 32, 3, 160, 1e4,
                                               RopeScaling::kNone, false, false, false, true, kFull3},
                                           Row{"gemma3",
                                               "Gemma3ForCausalLM",
                                               WeightType::kBF16,
                                               true,
                                               32,
                                               4,
                                               160,
                                               1e6,
                                               RopeScaling::kNone,
                                               false,
                                               false,
                                               false,
                                               true,
                                               {32, 0, 32, 0}},
                                           Row{"stories260k",
                                               "LlamaForCausalLM",
                                               WeightType::kF32,
                                               true,
                                               8,
                                               5,
                                               172,
                                               1e4,
                                               RopeScaling::kNone,
                                               false,
                                               false,
                                               false,
                                               false,
                                               {0, 0, 0, 0, 0}}),
                         [](const auto& info) {
                           std::string name = info.param.name;
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

TEST(CheckpointConfig, RopeScalingsInBothSpellings) {
  for (const char* name : {"llama-rope3", "llama-yarn", "gemma3"}) {
    const ModelConfig v5 = parse(tiny_json(name)), v4 = parse(tiny_json(name, "config.v4.json"));
    expect_same_rope(v5.rope, v4.rope);
    expect_same_rope(v5.rope_local, v4.rope_local);
  }
  const RopeConfig llama3 = parse(tiny_json("llama-rope3")).rope;
  EXPECT_EQ(llama3.factor, 8);
  EXPECT_EQ(llama3.original_max_position, 64);
  EXPECT_EQ(llama3.high_freq_factor, 4);
  const RopeConfig yarn = parse(tiny_json("llama-yarn")).rope;
  EXPECT_EQ(yarn.factor, 4);
  EXPECT_FALSE(yarn.attention_factor.has_value());
}

TEST(CheckpointConfig, Gemma3) {
  const ModelConfig c = parse(tiny_json("gemma3"));
  EXPECT_TRUE(c.norm_plus_one && c.sandwich_norms);
  EXPECT_EQ(c.embedding_scale, 8);
  EXPECT_EQ(c.rope_local.theta, 1e4);
  EXPECT_EQ(c.hidden_act, "gelu_pytorch_tanh");
}

}  // namespace
}  // namespace tokenmill
