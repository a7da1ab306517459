// Hugging Face folders: one file, shards, and every way they can be broken.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>

#include "checkpoint/checkpoint.h"
#include "checkpoint/tensor_names.h"
#include "util/expect_error.h"
#include "util/temp_folder.h"
#include "util/tiny_checkpoint.h"

namespace tokenmill {
namespace {

const std::string kTiny = TOKENMILL_TEST_DATA "/tiny/";

TEST(Safetensors, OpensEveryTinyModel) {
  for (const char* name : {"llama-tied", "llama-untied", "llama-rope3", "llama-yarn", "llama-bias", "mistral-swa",
                           "qwen2", "qwen3", "gemma3", "stories260k"}) {
    SCOPED_TRACE(name);
    const auto checkpoint = Checkpoint::open(kTiny + name, {});
    EXPECT_EQ(checkpoint->format(), "safetensors");
    const auto specs = tensor_specs(checkpoint->config());
    EXPECT_EQ(checkpoint->tensors().size(), specs.size());
    for (const TensorSpec& spec : specs) {
      const RawTensor& tensor = checkpoint->get(spec.name, spec.shape);
      ASSERT_NE(tensor.data, nullptr);
      EXPECT_EQ(checkpoint->file_of(tensor), 0);
      checkpoint->release(tensor);
    }
    EXPECT_EQ(checkpoint->find("layers.0.self_attn.nothing"), nullptr);
    EXPECT_EQ(checkpoint->find("lm_head.weight") == nullptr, checkpoint->config().tie_word_embeddings);
  }
}

using testing::little_config;
using testing::little_tensors;
using testing::safetensors_bytes;
using testing::SafetensorsEntry;
using testing::TempFolder;

class Folder : public ::testing::Test {
 protected:
  Folder() {
    config_ = little_config();
    tensors_ = little_tensors(config_);
  }
  void write() {
    folder_.write("config.json", config_.dump());
    folder_.write("model.safetensors", safetensors_bytes(tensors_));
  }
  std::unique_ptr<Checkpoint> open(const CheckpointOptions& options = {}) {
    return Checkpoint::open(folder_.path(), options);
  }
  SafetensorsEntry& tensor(const std::string& name) {
    for (SafetensorsEntry& entry : tensors_) {
      if (entry.name == name) return entry;
    }
    throw std::logic_error("no tensor " + name);
  }
  // Two shards and an index; `edit` may change the index before it is written.
  void write_shards(const std::function<void(nlohmann::json&)>& edit = nullptr) {
    folder_.write("config.json", config_.dump());
    nlohmann::json map;
    std::vector<SafetensorsEntry> parts[2];
    for (size_t i = 0; i < tensors_.size(); ++i) {
      parts[i % 2].push_back(tensors_[i]);
      map[tensors_[i].name] = i % 2 == 0 ? "a.safetensors" : "b.safetensors";
    }
    folder_.write("a.safetensors", safetensors_bytes(parts[0]));
    folder_.write("b.safetensors", safetensors_bytes(parts[1]));
    nlohmann::json index = {{"weight_map", map}};
    if (edit) edit(index);
    folder_.write("model.safetensors.index.json", index.dump());
  }

  TempFolder folder_;
  nlohmann::json config_;
  std::vector<SafetensorsEntry> tensors_;
};

TEST_F(Folder, BytesAreTheFiles) {
  write();
  const auto checkpoint = open();
  const RawTensor& q = checkpoint->get("layers.1.self_attn.q_proj.weight", {32, 32});
  EXPECT_EQ(q.type, WeightType::kBF16);
  const std::string& data = tensor("model.layers.1.self_attn.q_proj.weight").data;
  EXPECT_EQ(std::memcmp(q.data, data.data(), data.size()), 0);
  checkpoint->release(q);
  EXPECT_EQ(std::memcmp(q.data, data.data(), data.size()), 0);  // read from disk again
  EXPECT_LOAD_ERROR(checkpoint->get("layers.1.self_attn.q_proj.weight", {32, 16}), ErrorKind::kValue, "q_proj",
                    "[32, 16]", "[32, 32]");
  EXPECT_LOAD_ERROR(checkpoint->get("lm_head.weight", {40, 32}), ErrorKind::kValue, "lm_head.weight", "missing");
}

TEST_F(Folder, Shards) {
  write_shards();
  const auto checkpoint = open();
  EXPECT_EQ(checkpoint->num_files(), 2);
  int64_t in_second = 0;
  for (const RawTensor* tensor : checkpoint->tensors()) in_second += checkpoint->file_of(*tensor);
  EXPECT_EQ(in_second, static_cast<int64_t>(tensors_.size() / 2));
}

TEST_F(Folder, BadShards) {
  const std::string first = tensors_[0].name;
  const std::pair<const char*, const char*> paths[] = {{"../a.safetensors", "inside the model's folder"},
                                                       {"/etc/passwd", "inside the model's folder"},
                                                       {"x/../../a.safetensors", "inside the model's folder"},
                                                       {"", "inside the model's folder"},
                                                       {"c.safetensors", "c.safetensors: no such file"}};
  for (const auto& [path, part] : paths) {
    SCOPED_TRACE(path);
    write_shards([&](nlohmann::json& index) { index["weight_map"][first] = path; });
    EXPECT_LOAD_ERROR(open(), ErrorKind::kValue, part);
  }
  write_shards([&](nlohmann::json& index) { index["weight_map"][first] = "b.safetensors"; });
  EXPECT_LOAD_ERROR(open(), ErrorKind::kValue, "b.safetensors", first, "missing");
  write_shards([&](nlohmann::json& index) { index["weight_map"][first] = 7; });
  EXPECT_LOAD_ERROR(open(), ErrorKind::kValue, "index.json", first);
  write_shards([&](nlohmann::json& index) { index["weight_map"].erase(first); });
  EXPECT_LOAD_ERROR(open(), ErrorKind::kValue, "embed_tokens.weight", "missing");
  write_shards([&](nlohmann::json& index) { index = {{"metadata", 1}}; });
  EXPECT_LOAD_ERROR(open(), ErrorKind::kValue, "weight_map");
  write_shards();
  std::filesystem::remove(folder_.file("b.safetensors"));
  EXPECT_LOAD_ERROR(open(), ErrorKind::kValue, "b.safetensors", "no such file");
  std::filesystem::create_symlink("b.safetensors", folder_.file("b.safetensors"));
  EXPECT_LOAD_ERROR(open(), ErrorKind::kValue, "b.safetensors", "symbolic links");
}

TEST_F(Folder, TornHeaders) {
  write();
  const std::string whole = testing::read_file(folder_.file("model.safetensors"));
  for (size_t size : {size_t{1}, size_t{7}, size_t{8}, size_t{100}, whole.size() - 1}) {
    folder_.write("model.safetensors", whole.substr(0, size));
    EXPECT_LOAD_ERROR(open(), ErrorKind::kValue, "model.safetensors", "download it again");
  }
  folder_.write("model.safetensors", "");
  EXPECT_LOAD_ERROR(open(), ErrorKind::kValue, "model.safetensors", "empty");
  std::string huge = whole;
  const uint64_t length = uint64_t{1} << 63;
  std::memcpy(huge.data(), &length, 8);
  folder_.write("model.safetensors", huge);
  EXPECT_LOAD_ERROR(open(), ErrorKind::kValue, "model.safetensors", "download it again");
  folder_.write(
      "model.safetensors",
      testing::safetensors_file(
          R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
          std::string(12, '\0')));
  EXPECT_LOAD_ERROR(open(), ErrorKind::kValue, "model.safetensors");
}

TEST_F(Folder, BadTensors) {
  SafetensorsEntry& up = tensor("model.layers.0.mlp.up_proj.weight");
  const SafetensorsEntry sound = up;
  up.shape = {32, 64};
  write();
  EXPECT_LOAD_ERROR(open(), ErrorKind::kValue, "model.safetensors", up.name, "[64, 32]", "[32, 64]");
  up = sound;
  up.dtype = "I16";
  write();
  EXPECT_LOAD_ERROR(open(), ErrorKind::kUnsupported, "model.safetensors", up.name, "I16", "BF16");
  up = sound;
  up.name = "model.layers.0.mlp.other.weight";
  write();
  EXPECT_LOAD_ERROR(open(), ErrorKind::kValue, "layers.0.mlp.up_proj.weight", "missing");
  up = sound;
  tensors_.push_back({"model.layers.1.self_attn.q_norm.weight", "BF16", {8}, std::string(16, '\0')});
  write();
  EXPECT_LOAD_ERROR(open(), ErrorKind::kUnsupported, "q_norm", "LlamaForCausalLM");
  tensors_.back() = {"norm.weight", "BF16", {32}, std::string(64, '\0')};
  write();
  EXPECT_LOAD_ERROR(open(), ErrorKind::kValue, "norm.weight", "same weight");
  tensors_.back() = {"model.layers.1.self_attn.rotary_emb.inv_freq", "F32", {4}, std::string(16, '\0')};
  write();
  EXPECT_NE(open(), nullptr);
}

TEST_F(Folder, GemmaNormsAreOnePlus) {
  config_ = little_config("Gemma3ForCausalLM");
  tensors_ = little_tensors(config_);
  for (SafetensorsEntry& entry : tensors_) {
    if (!entry.name.ends_with("norm.weight")) continue;
    for (size_t i = 0; i < entry.data.size() / 2; ++i) {
      const uint16_t bits = f32_to_bf16(0.25f);
      std::memcpy(entry.data.data() + 2 * i, &bits, 2);
    }
  }
  // The wrapper's prefix, too.
  for (SafetensorsEntry& entry : tensors_) entry.name = "language_model." + entry.name;
  tensors_.push_back({"vision_tower.layers.0.weight", "F16", {2}, std::string(4, '\0')});
  nlohmann::json text = config_;
  config_ = {{"architectures", {"Gemma3ForConditionalGeneration"}}, {"text_config", text}};
  write();
  const auto checkpoint = open();
  for (const char* name : {"norm.weight", "layers.0.self_attn.q_norm.weight", "layers.1.input_layernorm.weight"}) {
    const RawTensor* norm = checkpoint->find(name);
    EXPECT_EQ(norm->type, WeightType::kF32);
    float value;
    std::memcpy(&value, norm->data, 4);
    EXPECT_EQ(value, 1.25f);
  }
}

TEST_F(Folder, MisalignedDataIsCopied) {
  for (SafetensorsEntry& entry : tensors_) {
    entry.dtype = "F32";
    entry.data = testing::random_values(3, entry.data.size() / 2, WeightType::kF32);
  }
  tensors_.insert(tensors_.begin(), {"odd", "U8", {3}, "abc"});
  write();
  const auto checkpoint = open();
  for (const RawTensor* tensor : checkpoint->tensors()) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(checkpoint->find(tensor->name)->data) % 4, 0u);
  }
}

TEST_F(Folder, DtypeOfTheWeightsWhereConfigSaysNone) {
  config_.erase("torch_dtype");
  write();
  EXPECT_EQ(open()->config().dtype, WeightType::kBF16);
}

TEST_F(Folder, GenerationConfigAndOverrides) {
  write();
  folder_.write("generation_config.json", R"({"eos_token_id": [2, 9]})");
  EXPECT_EQ(open()->config().eos_token_ids, (std::vector<int32_t>{2, 9}));
  CheckpointOptions options;
  options.model_override_json = R"({"eos_token_id": 5, "num_hidden_layers": 1})";
  EXPECT_EQ(open(options)->config().eos_token_ids, std::vector<int32_t>{5});
  EXPECT_EQ(open(options)->config().num_layers, 1);
  folder_.write("generation_config.json", "[");
  EXPECT_LOAD_ERROR(open(), ErrorKind::kValue, "generation_config.json", "JSON");
}

TEST_F(Folder, FoldersWithoutAModel) {
  EXPECT_LOAD_ERROR(open(), ErrorKind::kValue, folder_.path(), "config.json is missing");
  folder_.write("tokenizer.json", "{}");
  EXPECT_LOAD_ERROR(open(), ErrorKind::kValue, "holds a tokenizer but no model");
  folder_.write("config.json", config_.dump());
  EXPECT_LOAD_ERROR(open(), ErrorKind::kValue, "holds no weights");
  folder_.write("pytorch_model.bin", "x");
  EXPECT_LOAD_ERROR(open(), ErrorKind::kUnsupported, "pytorch_model.bin", "pickled", "safetensors");
}

TEST_F(Folder, TokenizerSource) {
  write();
  EXPECT_EQ(open()->tokenizer_source().folder, "");
  folder_.write("tokenizer.json", "{}");
  EXPECT_EQ(open()->tokenizer_source().folder, folder_.path());
}

TEST_F(Folder, DummyWeights) {
  folder_.write("config.json", config_.dump());
  CheckpointOptions options;
  options.load_format = "dummy";
  const auto a = open(options), b = open(options);
  options.dummy_seed = 1;
  const auto c = open(options);
  EXPECT_EQ(a->format(), "dummy");
  const RawTensor& up = a->get("layers.0.mlp.up_proj.weight", {64, 32});
  const RawTensor& same = b->get("layers.0.mlp.up_proj.weight", {64, 32});
  EXPECT_EQ(std::memcmp(up.data, same.data, up.bytes()), 0);
  EXPECT_NE(std::memcmp(up.data, c->find("layers.0.mlp.up_proj.weight")->data, up.bytes()), 0);
  EXPECT_NE(std::memcmp(up.data, a->find("layers.1.mlp.up_proj.weight")->data, up.bytes()), 0);
  double sum = 0, squares = 0;
  for (size_t i = 0; i < 64 * 32; ++i) {
    uint16_t bits;
    std::memcpy(&bits, up.data + 2 * i, 2);
    const double value = bf16_to_f32(bits);
    sum += value, squares += value * value;
  }
  EXPECT_NEAR(sum / 2048, 0, 0.002);
  EXPECT_NEAR(std::sqrt(squares / 2048), 0.02, 0.002);
  uint16_t one;
  std::memcpy(&one, a->get("norm.weight", {32}).data, 2);
  EXPECT_EQ(bf16_to_f32(one), 1.0f);
  config_["torch_dtype"] = "float32";
  folder_.write("config.json", config_.dump());
  EXPECT_EQ(open(options)->find("norm.weight")->type, WeightType::kF32);
}

// Real models, where TOKENMILL_TEST_MODELS names a folder of them.
TEST(RealModels, Open) {
  const char* models = std::getenv("TOKENMILL_TEST_MODELS");
  if (models == nullptr) GTEST_SKIP() << "not run: TOKENMILL_TEST_MODELS is not set";
  const std::string root = models;
  const auto gguf = Checkpoint::open(root + "/gguf/SmolLM2-135M-Instruct.Q4_1.gguf", {});
  const auto folder = Checkpoint::open(root + "/smollm2-135m-f32", {});
  const auto sharded = Checkpoint::open(root + "/smollm2-135m-bf16-sharded", {});
  EXPECT_EQ(sharded->num_files(), 4);
  for (const Checkpoint* checkpoint : {gguf.get(), folder.get(), sharded.get()}) {
    const ModelConfig& c = checkpoint->config();
    EXPECT_EQ(c.architecture, "LlamaForCausalLM");
    EXPECT_EQ(c.num_layers, 30);
    EXPECT_EQ(c.num_heads, 9);
    EXPECT_EQ(c.num_kv_heads, 3);
    EXPECT_EQ(c.head_dim, 64);
    EXPECT_EQ(c.vocab_size, 49152);
    EXPECT_EQ(c.max_position, 8192);
    EXPECT_EQ(c.rms_norm_eps, 1e-5);
    EXPECT_EQ(c.rope.theta, 1e5);
    EXPECT_EQ(c.eos_token_ids, std::vector<int32_t>{2});
    EXPECT_TRUE(c.tie_word_embeddings);
    EXPECT_EQ(checkpoint->tensors().size(), folder->tensors().size());
  }
  EXPECT_TRUE(gguf->config().quantized);
  // The folder's f32 weights are the GGUF's, dequantised: block 0 of a k row, so q and k order is right.
  const RawTensor& block = gguf->get("layers.3.self_attn.k_proj.weight", {192, 576});
  const RawTensor& values = folder->get("layers.3.self_attn.k_proj.weight", {192, 576});
  ASSERT_EQ(block.type, WeightType::kQ4_1);
  for (int64_t row = 0; row < 192; ++row) {
    const std::byte* q = block.data + static_cast<size_t>(row) * block.row_bytes();
    uint16_t scale, minimum;
    std::memcpy(&scale, q, 2);
    std::memcpy(&minimum, q + 2, 2);
    float value;
    std::memcpy(&value, values.data + static_cast<size_t>(row) * values.row_bytes(), 4);
    EXPECT_EQ(value, f16_to_f32(scale) * static_cast<float>(static_cast<int>(q[4]) & 15) + f16_to_f32(minimum));
  }
}

TEST(RealModels, Gemma3) {
  const char* models = std::getenv("TOKENMILL_TEST_MODELS");
  if (models == nullptr) GTEST_SKIP() << "not run: TOKENMILL_TEST_MODELS is not set";
  const auto gguf = Checkpoint::open(std::string(models) + "/gguf/gemma-3-270m-q4_k_m.gguf", {});
  const auto folder = Checkpoint::open(std::string(models) + "/gemma3-270m-f32", {});
  const ModelConfig &a = gguf->config(), &b = folder->config();
  EXPECT_EQ(a.layer_window, b.layer_window);
  EXPECT_EQ(a.rope.theta, b.rope.theta);
  EXPECT_EQ(a.rope_local.theta, b.rope_local.theta);
  EXPECT_EQ(a.attention_scale, b.attention_scale);
  EXPECT_EQ(a.embedding_scale, b.embedding_scale);
  EXPECT_EQ(a.head_dim, b.head_dim);
  EXPECT_EQ(a.vocab_size, b.vocab_size);
  EXPECT_EQ(a.rms_norm_eps, b.rms_norm_eps);
  EXPECT_EQ(a.max_position, b.max_position);
  for (const char* name :
       {"norm.weight", "layers.5.self_attn.q_norm.weight", "layers.2.post_attention_layernorm.weight",
        "layers.2.pre_feedforward_layernorm.weight", "layers.2.post_feedforward_layernorm.weight"}) {
    SCOPED_TRACE(name);
    const RawTensor *x = gguf->find(name), *y = folder->find(name);
    ASSERT_EQ(x->bytes(), y->bytes());
    for (size_t i = 0; i < x->bytes() / 4; ++i) {
      float u, v;
      std::memcpy(&u, x->data + 4 * i, 4);
      std::memcpy(&v, y->data + 4 * i, 4);
      EXPECT_NEAR(u, v, 1e-6f * std::abs(u));
    }
  }
}

}  // namespace
}  // namespace tokenmill
