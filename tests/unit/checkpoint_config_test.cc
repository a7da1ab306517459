// config.json -> ModelConfig: both spellings, every family's own keys, and every refusal's message.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "checkpoint/checkpoint.h"
#include "checkpoint/config_json.h"
#include "checkpoint/json_file.h"
#include "util/expect_error.h"
#include "util/temp_folder.h"
#include "util/tiny_checkpoint.h"

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

TEST(CheckpointConfig, DeepNestingIsAnErrorNotAStackOverflow) {
  const std::string opened(200000, '['), closed(200000, ']');
  EXPECT_LOAD_ERROR((void)parse_json_object("{\"architectures\": " + opened + closed + "}", "F/config.json"),
                    ErrorKind::kValue, "F/config.json", "nests deeper than 128 levels");
}

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

json little() { return testing::little_config(); }

TEST(CheckpointConfig, DefaultsOfAbsentAndNullKeys) {
  json c = little();
  c.erase("head_dim");
  EXPECT_EQ(parse(c).head_dim, 8);
  c["head_dim"] = nullptr;
  EXPECT_EQ(parse(c).head_dim, 8);
  c.erase("num_key_value_heads");
  EXPECT_EQ(parse(c).num_kv_heads, 4);
  c.erase("tie_word_embeddings");
  EXPECT_FALSE(parse(c).tie_word_embeddings);
  c.erase("rms_norm_eps");
  EXPECT_EQ(parse(c).rms_norm_eps, 1e-6);
  c.erase("max_position_embeddings");
  EXPECT_EQ(parse(c).max_position, 2048);
  c.erase("rope_theta");
  EXPECT_EQ(parse(c).rope.theta, 10000);
  json gemma = {{"architectures", {"Gemma3ForCausalLM"}},
                {"hidden_size", 64},
                {"intermediate_size", 160},
                {"num_hidden_layers", 7}};
  const ModelConfig g = parse(gemma);
  EXPECT_EQ(g.num_heads, 8);
  EXPECT_EQ(g.num_kv_heads, 4);
  EXPECT_EQ(g.head_dim, 256);
  EXPECT_TRUE(g.tie_word_embeddings);
  EXPECT_EQ(g.layer_window, (std::vector<int32_t>{4096, 4096, 4096, 4096, 4096, 0, 4096}));
  EXPECT_EQ(g.rope.theta, 1e6);
  json qwen3 = testing::little_config("Qwen3ForCausalLM");
  qwen3.erase("head_dim");
  EXPECT_EQ(parse(qwen3).head_dim, 128);
}

TEST(CheckpointConfig, SlidingWindows) {
  using Windows = std::vector<int32_t>;
  json mistral = testing::little_config("MistralForCausalLM");
  EXPECT_EQ(parse(mistral).layer_window, (Windows{4096, 4096}));  // the class's default
  mistral["sliding_window"] = nullptr;
  EXPECT_EQ(parse(mistral).layer_window, (Windows{0, 0}));
  json qwen = testing::little_config("Qwen2ForCausalLM");
  qwen["sliding_window"] = 16;
  qwen["max_window_layers"] = 1;
  EXPECT_EQ(parse(qwen).layer_window, (Windows{0, 0}));
  qwen["use_sliding_window"] = true;
  EXPECT_EQ(parse(qwen).layer_window, (Windows{0, 16}));
  qwen["layer_types"] = {"sliding_attention", "full_attention"};
  EXPECT_EQ(parse(qwen).layer_window, (Windows{16, 0}));
  json gemma = testing::little_config("Gemma3ForCausalLM");
  gemma["sliding_window"] = 16;
  gemma["sliding_window_pattern"] = 2;
  EXPECT_EQ(parse(gemma).layer_window, (Windows{16, 0}));
  json llama = little();
  llama["sliding_window"] = 16;  // not a key of Llama's class
  EXPECT_EQ(parse(llama).layer_window, (Windows{0, 0}));
}

TEST(CheckpointConfig, GemmaKeysOfBothSpellings) {
  json c = testing::little_config("Gemma3ForCausalLM");
  c["query_pre_attn_scalar"] = 16;
  c["attn_logit_softcapping"] = 50.0;
  c["final_logit_softcapping"] = 30.0;
  c["hidden_act"] = "silu";
  c["hidden_activation"] = "gelu_pytorch_tanh";
  c["rope_scaling"] = {{"type", "linear"}, {"factor", 8.0}};
  c["rope_local_base_freq"] = 20000;
  const ModelConfig v4 = parse(c);
  EXPECT_EQ(v4.attention_scale, 0.25);
  EXPECT_EQ(v4.attention_softcap, 50);
  EXPECT_EQ(v4.final_softcap, 30);
  EXPECT_EQ(v4.hidden_act, "gelu_pytorch_tanh");
  EXPECT_EQ(v4.rope.factor, 8);
  EXPECT_EQ(v4.rope_local.scaling, RopeScaling::kNone);
  EXPECT_EQ(v4.rope_local.theta, 20000);
  for (const char* key : {"rope_theta", "rope_scaling", "rope_local_base_freq"}) c.erase(key);
  c["rope_parameters"] = {{"full_attention", {{"rope_theta", 10000.0}, {"rope_type", "linear"}, {"factor", 8.0}}},
                          {"sliding_attention", {{"rope_theta", 20000.0}, {"rope_type", "default"}}}};
  const ModelConfig v5 = parse(c);
  expect_same_rope(v4.rope, v5.rope);
  expect_same_rope(v4.rope_local, v5.rope_local);
}

TEST(CheckpointConfig, TextConfigOfAWrapper) {
  json text = testing::little_config("");
  text.erase("architectures");
  text.erase("torch_dtype");
  const json c = {{"architectures", {"Gemma3ForConditionalGeneration"}},
                  {"text_config", text},
                  {"eos_token_id", {3, 4}},
                  {"torch_dtype", "float16"},
                  {"vision_config", {{"hidden_size", 8}}}};
  const ModelConfig m = parse(c);
  EXPECT_EQ(m.architecture, "Gemma3ForCausalLM");
  EXPECT_EQ(m.hidden_size, 32);
  EXPECT_EQ(m.dtype, WeightType::kF16);
  EXPECT_EQ(m.eos_token_ids, (std::vector<int32_t>{3, 4, 2}));
  EXPECT_LOAD_ERROR(parse({{"architectures", {"Gemma3ForConditionalGeneration"}}}), ErrorKind::kValue, "text_config");
}

TEST(CheckpointConfig, RopeKinds) {
  json c = little();
  c["rope_scaling"] = {{"type", "dynamic"}, {"factor", 2.0}};
  EXPECT_EQ(parse(c).rope.scaling, RopeScaling::kDynamic);
  c["rope_scaling"] = {{"rope_type", "yarn"},
                       {"factor", 4.0},
                       {"attention_factor", 1.5},
                       {"mscale", 1.0},
                       {"mscale_all_dim", 0.5},
                       {"truncate", false},
                       {"original_max_position_embeddings", 16}};
  const RopeConfig yarn = parse(c).rope;
  EXPECT_EQ(yarn.attention_factor, 1.5);
  EXPECT_EQ(yarn.mscale, 1.0);
  EXPECT_EQ(yarn.mscale_all_dim, 0.5);
  EXPECT_FALSE(yarn.yarn_truncate);
  c["rope_scaling"] = {{"rope_type", "yarn"}, {"original_max_position_embeddings", 16}};
  EXPECT_EQ(parse(c).rope.factor, 4);  // 64 / 16
  c["rope_scaling"] = {{"rope_type", "default"}};
  EXPECT_EQ(parse(c).rope.scaling, RopeScaling::kNone);
}

TEST(CheckpointConfig, BadValuesNameFileKeyRuleAndValue) {
  struct Case {
    const char* key;
    json value;
    ErrorKind kind;
    const char* part;
  };
  const json kNone = json::value_t::discarded;
  const Case cases[] = {
      {"hidden_size", 0, ErrorKind::kValue, "from 1 to 1048576, but is '0'"},
      {"hidden_size", -1, ErrorKind::kValue, "but is '-1'"},
      {"hidden_size", "big", ErrorKind::kValue, "must be an integer"},
      {"hidden_size", 32.5, ErrorKind::kValue, "must be an integer"},
      {"hidden_size", 18446744073709551615u, ErrorKind::kValue, "must be an integer"},
      {"hidden_size", nullptr, ErrorKind::kValue, "must be an integer"},
      {"hidden_size", kNone, ErrorKind::kValue, "is missing"},
      {"vocab_size", kNone, ErrorKind::kValue, "is missing"},
      {"num_hidden_layers", 5000, ErrorKind::kValue, "from 1 to 1024"},
      {"num_attention_heads", 3, ErrorKind::kValue, "multiple of 'num_key_value_heads'"},
      {"num_key_value_heads", 8, ErrorKind::kValue, "multiple"},
      {"head_dim", 7, ErrorKind::kValue, "even"},
      {"head_dim", 512, ErrorKind::kUnsupported, "up to 256"},
      {"max_position_embeddings", 0, ErrorKind::kValue, "from 1"},
      {"rms_norm_eps", 0.0, ErrorKind::kValue, "must be a number from"},
      {"rope_theta", -1.0, ErrorKind::kValue, "must be a number from"},
      {"rope_theta", "x", ErrorKind::kValue, "must be a number"},
      {"hidden_act", "relu", ErrorKind::kUnsupported, "silu"},
      {"attention_bias", 1, ErrorKind::kValue, "true or false"},
      {"tie_word_embeddings", "yes", ErrorKind::kValue, "true or false"},
      {"torch_dtype", "float64", ErrorKind::kUnsupported, "bfloat16"},
      {"eos_token_id", 40, ErrorKind::kValue, "from 0 to 39"},
      {"eos_token_id", -1, ErrorKind::kValue, "from 0"},
      {"eos_token_id", {"a"}, ErrorKind::kValue, "must be an integer"},
      {"quantization_config", {{"quant_method", "awq"}}, ErrorKind::kUnsupported, "awq"},
      {"partial_rotary_factor", 0.5, ErrorKind::kUnsupported, "a part of the head"},
      {"layer_types", {"full_attention"}, ErrorKind::kValue, "each of the 2 layers"},
      {"layer_types", {"sliding_attention", "full_attention"}, ErrorKind::kUnsupported, "LlamaForCausalLM"},
      {"layer_types", {"linear_attention", "full_attention"}, ErrorKind::kUnsupported, "full_attention"},
      {"rope_scaling", "yarn", ErrorKind::kValue, "must be a JSON object"},
      {"rope_scaling", {{"type", "longrope"}}, ErrorKind::kUnsupported, "llama3, yarn"},
      {"rope_scaling", {{"type", "linear"}}, ErrorKind::kValue, "rope_scaling"},
      {"rope_scaling", {{"type", "linear"}, {"factor", 0.5}}, ErrorKind::kValue, "from 1"},
      {"final_logit_softcapping", 30.0, ErrorKind::kUnsupported, "soft caps"},
      {"architectures", json::array(), ErrorKind::kValue, "MistralForCausalLM"},
      {"architectures", {"MambaForCausalLM"}, ErrorKind::kUnsupported, "Gemma3ForCausalLM"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(std::string(c.key) + " = " + (c.value.is_discarded() ? "missing" : c.value.dump()));
    json config = little();
    if (c.value.is_discarded()) {
      config.erase(c.key);
    } else {
      config[c.key] = c.value;
    }
    const char* key = std::string(c.key) == "eos_token_id" || std::string(c.key) == "rope_scaling" ? "" : c.key;
    EXPECT_LOAD_ERROR(parse(config), c.kind, "F/config.json", key, c.part);
  }
  json mistral = testing::little_config("MistralForCausalLM");
  mistral["attention_bias"] = true;
  EXPECT_LOAD_ERROR(parse(mistral), ErrorKind::kUnsupported, "attention_bias", "MistralForCausalLM");
}

TEST(CheckpointConfig, UnknownArchitectureListsAllKnown) {
  json c = little();
  c["architectures"] = {"RwkvForCausalLM"};
  for (const std::string& name : known_architectures()) {
    EXPECT_LOAD_ERROR(parse(c), ErrorKind::kUnsupported, "RwkvForCausalLM", name);
  }
}

TEST(CheckpointConfig, Overrides) {
  json v4 = little();
  apply_config_overrides(v4, R"({"num_hidden_layers": 1, "rope_theta": 5e5})");
  EXPECT_EQ(parse(v4).num_layers, 1);
  EXPECT_EQ(parse(v4).rope.theta, 5e5);
  json v5 = tiny_json("llama-rope3");
  apply_config_overrides(v5, R"({"rope_scaling": {"type": "linear", "factor": 2.0}, "torch_dtype": "float32"})");
  EXPECT_EQ(parse(v5).rope.scaling, RopeScaling::kLinear);
  EXPECT_EQ(parse(v5).rope.theta, 5e5);
  EXPECT_EQ(parse(v5).dtype, WeightType::kF32);
  json gemma = tiny_json("gemma3");
  apply_config_overrides(gemma, R"({"rope_theta": 7e5, "rope_local_base_freq": 2e4})");
  EXPECT_EQ(parse(gemma).rope.theta, 7e5);
  EXPECT_EQ(parse(gemma).rope_local.theta, 2e4);
  EXPECT_LOAD_ERROR(apply_config_overrides(v4, "[1]"), ErrorKind::kValue, "json_model_override_args", "object");
  EXPECT_LOAD_ERROR(apply_config_overrides(v4, "{\n"), ErrorKind::kValue, "json_model_override_args", "JSON");
}

TEST(CheckpointConfig, GenerationConfigAddsEosIds) {
  ModelConfig c = parse(little());
  add_generation_config(c, {{"eos_token_id", {2, 5, 6}}, {"bos_token_id", 9}}, "G");
  EXPECT_EQ(c.eos_token_ids, (std::vector<int32_t>{2, 5, 6}));
  EXPECT_EQ(c.bos_token_id, 1);
  EXPECT_LOAD_ERROR(add_generation_config(c, {{"eos_token_id", 40}}, "G"), ErrorKind::kValue, "G: ", "40");
}

}  // namespace
}  // namespace tokenmill
