// GGUF files: metadata, names, row order, every weight type, and every way they can be broken.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "checkpoint/gguf_checkpoint.h"
#include "checkpoint/tensor_store.h"
#include "util/expect_error.h"
#include "util/temp_folder.h"
#include "util/tiny_checkpoint.h"

namespace tokenmill {
namespace {

using testing::GgufWriter;
using testing::little_gguf;
using testing::LittleGguf;
using testing::TempFolder;

class Gguf : public ::testing::Test {
 protected:
  std::unique_ptr<Checkpoint> open(const GgufWriter& writer) {
    return Checkpoint::open(folder_.write("model.gguf", writer.bytes()), {});
  }
  TempFolder folder_;
};

std::vector<float> values_of(const RawTensor& tensor) {
  std::vector<float> out(tensor.bytes() / 4);
  std::memcpy(out.data(), tensor.data, tensor.bytes());
  return out;
}

TEST_F(Gguf, MetadataOfEveryFamily) {
  struct Case {
    const char *gguf, *name, *act;
    bool qk_norm, sandwich;
  };
  for (const Case& c :
       {Case{"llama", "LlamaForCausalLM", "silu", false, false},
        Case{"qwen2", "Qwen2ForCausalLM", "silu", false, false}, Case{"qwen3", "Qwen3ForCausalLM", "silu", true, false},
        Case{"gemma3", "Gemma3ForCausalLM", "gelu_pytorch_tanh", true, true}}) {
    SCOPED_TRACE(c.gguf);
    LittleGguf little;
    little.architecture = c.gguf;
    little.qkv_bias = std::string(c.gguf) == "qwen2";
    little.layers = 7;
    little.type = WeightType::kF16;
    const auto checkpoint = open(little_gguf(little));
    const ModelConfig& m = checkpoint->config();
    EXPECT_EQ(m.architecture, c.name);
    EXPECT_EQ(m.hidden_act, c.act);
    EXPECT_EQ(m.qk_norm, c.qk_norm);
    EXPECT_EQ(m.sandwich_norms, c.sandwich);
    EXPECT_EQ(m.qkv_bias, little.qkv_bias);
    EXPECT_FALSE(m.o_bias || m.mlp_bias || m.norm_plus_one || m.quantized);
    EXPECT_EQ(m.dtype, WeightType::kF16);
    EXPECT_EQ(m.hidden_size, 32);
    EXPECT_EQ(m.vocab_size, 40);
    EXPECT_EQ(m.max_position, 64);
    EXPECT_DOUBLE_EQ(m.rms_norm_eps, 1e-5);
    EXPECT_TRUE(m.tie_word_embeddings);
    EXPECT_EQ(m.eos_token_ids, std::vector<int32_t>{2});
    EXPECT_EQ(m.bos_token_id, 1);
    EXPECT_EQ(m.embedding_scale, c.sandwich ? std::sqrt(32.0) : 1);
    const std::vector<int32_t> gemma = {16, 16, 16, 16, 16, 0, 16}, full(7, 0);
    EXPECT_EQ(m.layer_window, c.sandwich ? gemma : full);
    EXPECT_EQ(checkpoint->format(), "gguf");
    EXPECT_EQ(checkpoint->tokenizer_source().gguf_path, checkpoint->resolved_path());
  }
}

TEST_F(Gguf, EveryWeightType) {
  for (size_t i = 0; i < std::size(kWeightTypes); ++i) {
    const auto type = static_cast<WeightType>(i);
    SCOPED_TRACE(info(type).name);
    LittleGguf little;
    little.type = type;
    little.hidden = little.inner = 256;
    little.head_dim = 64;
    little.architecture = "qwen3";  // rows are not reordered: bytes must be the file's
    const auto checkpoint = open(little_gguf(little));
    const RawTensor& q = checkpoint->get("layers.1.self_attn.q_proj.weight", {256, 256});
    EXPECT_EQ(q.type, type);
    EXPECT_EQ(q.bytes(),
              256u * 256 / static_cast<size_t>(info(type).block_values) * static_cast<size_t>(info(type).block_bytes));
    const GgufFile file(checkpoint->resolved_path());
    const GgufTensor* raw = file.find_tensor("blk.1.attn_q.weight");
    ASSERT_EQ(raw->data.size(), q.bytes());
    EXPECT_EQ(std::memcmp(raw->data.data(), q.data, q.bytes()), 0);
    EXPECT_EQ(checkpoint->config().quantized, info(type).quantized);
    EXPECT_EQ(checkpoint->config().dtype, info(type).quantized ? WeightType::kBF16 : type);
  }
}

TEST_F(Gguf, LlamaRowsComeBackInHuggingFaceOrder) {
  // Heads of 8: GGUF's rows 0..7 are Hugging Face's 0, 4, 1, 5, 2, 6, 3, 7.
  LittleGguf little;
  little.qkv_bias = true;
  GgufWriter writer = little_gguf(little);
  std::string weights, bias;
  for (int row = 0; row < 16; ++row) {
    const auto value = static_cast<float>(row / 8 * 8 + row % 2 * 4 + row % 8 / 2);
    for (int col = 0; col < 32; ++col) weights.append(reinterpret_cast<const char*>(&value), 4);
    bias.append(reinterpret_cast<const char*>(&value), 4);
  }
  for (const char* name : {"blk.0.attn_k.weight", "blk.0.attn_k.bias"}) writer.remove(name);
  writer.add_tensor("blk.0.attn_k.weight", 0, {16, 32}, weights);
  writer.add_tensor("blk.0.attn_k.bias", 0, {16}, bias);
  const auto checkpoint = open(writer);
  const RawTensor& k = checkpoint->get("layers.0.self_attn.k_proj.weight", {16, 32});
  const RawTensor& k_bias = checkpoint->get("layers.0.self_attn.k_proj.bias", {16});
  for (size_t row = 0; row < 16; ++row) {
    EXPECT_EQ(values_of(k)[row * 32 + 31], static_cast<float>(row));
    EXPECT_EQ(values_of(k_bias)[row], static_cast<float>(row));
  }
  // Given back, it comes again.
  checkpoint->release(k);
  EXPECT_EQ(k.data, nullptr);
  EXPECT_EQ(values_of(checkpoint->get("layers.0.self_attn.k_proj.weight", {16, 32}))[32], 1.0f);
}

TEST_F(Gguf, QuantisedRowsMoveWhole) {
  LittleGguf little;
  little.type = WeightType::kQ4_0;
  const auto checkpoint = open(little_gguf(little));
  const RawTensor& q = checkpoint->get("layers.0.self_attn.q_proj.weight", {32, 32});
  const GgufFile file(checkpoint->resolved_path());
  const std::byte* raw = file.find_tensor("blk.0.attn_q.weight")->data.data();
  const size_t row = 18;  // one block of 32 values
  for (size_t i = 0; i < 32; ++i) {
    const size_t from = i / 8 * 8 + i % 4 * 2 + i % 8 / 4;
    EXPECT_EQ(std::memcmp(q.data + i * row, raw + from * row, row), 0) << i;
  }
}

TEST_F(Gguf, RopeScaling) {
  GgufWriter writer = little_gguf({});
  writer.add_string("llama.rope.scaling.type", "yarn");
  writer.add_f32("llama.rope.scaling.factor", 4);
  writer.add_u32("llama.rope.scaling.original_context_length", 16);
  writer.add_f32("llama.rope.scaling.attn_factor", 1);
  const RopeConfig yarn = open(writer)->config().rope;
  EXPECT_EQ(yarn.scaling, RopeScaling::kYarn);
  EXPECT_EQ(yarn.factor, 4);
  EXPECT_EQ(yarn.original_max_position, 16);
  EXPECT_DOUBLE_EQ(*yarn.attention_factor, 0.1 * std::log(4.0) + 1);
  writer.add_string("llama.rope.scaling.type", "linear");
  EXPECT_EQ(open(writer)->config().rope.scaling, RopeScaling::kLinear);
  writer.add_string("llama.rope.scaling.type", "longrope");
  EXPECT_LOAD_ERROR(open(writer), ErrorKind::kUnsupported, "model.gguf", "llama.rope.scaling.type", "longrope");
  writer.add_string("llama.rope.scaling.type", "none");
  const float divisors[] = {1, 1, 2.5f, 8};
  writer.add_tensor("rope_freqs.weight", 0, {4}, std::string(reinterpret_cast<const char*>(divisors), 16));
  EXPECT_EQ(open(writer)->config().rope.frequency_divisors, (std::vector<float>{1, 1, 2.5f, 8}));
}

TEST_F(Gguf, GemmaKeys) {
  LittleGguf little;
  little.architecture = "gemma3";
  little.layers = 3;
  GgufWriter writer = little_gguf(little);
  writer.add_f32("gemma3.rope.freq_base", 1e6f);
  writer.add_string("gemma3.rope.scaling.type", "linear");
  writer.add_f32("gemma3.rope.scaling.factor", 8);
  writer.add_f32("gemma3.final_logit_softcapping", 30);
  ModelConfig m = open(writer)->config();
  EXPECT_EQ(m.rope.theta, 1e6);
  EXPECT_EQ(m.rope.factor, 8);
  EXPECT_EQ(m.rope_local.theta, 1e4);
  EXPECT_EQ(m.rope_local.scaling, RopeScaling::kNone);
  EXPECT_EQ(m.final_softcap, 30);
  writer.add_u32("gemma3.attention.sliding_window_pattern", 2);
  EXPECT_EQ(open(writer)->config().layer_window, (std::vector<int32_t>{16, 0, 16}));
  writer.add_bools("gemma3.attention.sliding_window_pattern", {false, true, true});
  EXPECT_EQ(open(writer)->config().layer_window, (std::vector<int32_t>{0, 16, 16}));
  writer.add_bools("gemma3.attention.sliding_window_pattern", {false});
  EXPECT_LOAD_ERROR(open(writer), ErrorKind::kValue, "sliding_window_pattern", "1 entries");
}

TEST_F(Gguf, EndOfTextIds) {
  GgufWriter writer = little_gguf({});
  writer.add_u32("tokenizer.ggml.eot_token_id", 7);
  writer.add_u32("tokenizer.ggml.eom_token_id", 2);
  EXPECT_EQ(open(writer)->config().eos_token_ids, (std::vector<int32_t>{2, 7}));
  writer.add_u32("tokenizer.ggml.eot_token_id", 40);
  EXPECT_LOAD_ERROR(open(writer), ErrorKind::kValue, "eot_token_id", "from 0 to 39", "40");
}

TEST_F(Gguf, UntiedAndMistral) {
  LittleGguf little;
  little.tied = false;
  GgufWriter writer = little_gguf(little);
  EXPECT_NE(open(writer)->find("lm_head.weight"), nullptr);
  writer.add_u32("llama.attention.sliding_window", 8);
  EXPECT_EQ(open(writer)->config().layer_window, (std::vector<int32_t>{8, 8}));
}

TEST_F(Gguf, BadMetadata) {
  struct Case {
    const char* key;
    uint32_t value;
    ErrorKind kind;
    const char* part;
  };
  const Case cases[] = {
      {"llama.embedding_length", 0, ErrorKind::kValue, "from 1 to"},
      {"llama.block_count", 100000, ErrorKind::kValue, "from 1 to 1024"},
      {"llama.attention.head_count", 3, ErrorKind::kValue, "multiple"},
      {"llama.attention.head_count_kv", 0, ErrorKind::kValue, "from 1"},
      {"llama.attention.key_length", 7, ErrorKind::kUnsupported, "value_length"},
      {"llama.rope.dimension_count", 4, ErrorKind::kUnsupported, "part of the head"},
      {"llama.expert_count", 8, ErrorKind::kUnsupported, "mixture-of-experts"},
      {"llama.context_length", 0, ErrorKind::kValue, "from 1"},
      {"llama.feed_forward_length", 32, ErrorKind::kValue, "must have shape [32, 32]"},
      {"split.count", 3, ErrorKind::kUnsupported, "llama-gguf-split"},
      {"llama.logit_scale", 1, ErrorKind::kUnsupported, "logit_scale"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.key);
    GgufWriter writer = little_gguf({});
    writer.add_u32(c.key, c.value);
    EXPECT_LOAD_ERROR(open(writer), c.kind, "model.gguf", c.part);
  }
  for (const char* key : {"llama.embedding_length", "llama.block_count", "llama.attention.layer_norm_rms_epsilon"}) {
    GgufWriter writer = little_gguf({});
    writer.remove(key);
    EXPECT_LOAD_ERROR(open(writer), ErrorKind::kValue, "model.gguf", key, "missing");
  }
  GgufWriter writer = little_gguf({});
  writer.add_f32("llama.rope.freq_base", NAN);
  EXPECT_LOAD_ERROR(open(writer), ErrorKind::kValue, "rope.freq_base", "finite");
  writer = little_gguf({});
  writer.add_u32s("llama.attention.head_count_kv", {2, 1});
  EXPECT_LOAD_ERROR(open(writer), ErrorKind::kUnsupported, "head_count_kv", "layer to layer");
  writer.add_u32s("llama.attention.head_count_kv", {2, 2});
  EXPECT_EQ(open(writer)->config().num_kv_heads, 2);
}

TEST_F(Gguf, BadTensors) {
  GgufWriter writer = little_gguf({});
  writer.remove("blk.1.ffn_up.weight");
  EXPECT_LOAD_ERROR(open(writer), ErrorKind::kValue, "blk.1.ffn_up.weight", "missing");
  writer.add_tensor("blk.1.ffn_up.weight", 20, {64, 32}, std::string(64 * 18, '\0'));
  EXPECT_LOAD_ERROR(open(writer), ErrorKind::kUnsupported, "blk.1.ffn_up.weight", "IQ4_NL", "Q6_K");
  writer.remove("blk.1.ffn_up.weight");
  writer.add_tensor("blk.1.ffn_up.weight", 77, {64, 32}, std::string(64 * 18, '\0'));
  EXPECT_LOAD_ERROR(open(writer), ErrorKind::kUnsupported, "blk.1.ffn_up.weight", "type number 77");
  writer.remove("blk.1.ffn_up.weight");
  writer.add_tensor("blk.1.ffn_up.weight", 0, {32, 64}, std::string(64 * 32 * 4, '\0'));
  EXPECT_LOAD_ERROR(open(writer), ErrorKind::kValue, "blk.1.ffn_up.weight", "[64, 32]", "[32, 64]");
  writer = little_gguf({});
  writer.add_tensor("blk.0.ffn_gate_exps.weight", 0, {64, 32}, std::string(64 * 32 * 4, '\0'));
  EXPECT_LOAD_ERROR(open(writer), ErrorKind::kUnsupported, "blk.0.ffn_gate_exps.weight");
}

TEST_F(Gguf, UnknownArchitectureListsTheKnown) {
  GgufWriter writer = little_gguf({});
  writer.add_string("general.architecture", "mamba");
  EXPECT_LOAD_ERROR(open(writer), ErrorKind::kUnsupported, "mamba", "gemma3, llama, qwen2, qwen3");
}

TEST_F(Gguf, OverridesAreRefused) {
  const std::string path = folder_.write("model.gguf", little_gguf({}).bytes());
  CheckpointOptions options;
  options.model_override_json = R"({"rope_theta": 5})";
  EXPECT_LOAD_ERROR(Checkpoint::open(path, options), ErrorKind::kUnsupported, "json_model_override_args");
}

TEST_F(Gguf, TornFiles) {
  const std::string whole = little_gguf({}).bytes();
  for (size_t size : {size_t{1}, size_t{8}, size_t{30}, whole.size() / 2, whole.size() - 40}) {
    const std::string path = folder_.write("torn.gguf", whole.substr(0, size));
    EXPECT_LOAD_ERROR(Checkpoint::open(path, {}), ErrorKind::kValue, "torn.gguf");
  }
}

}  // namespace
}  // namespace tokenmill
