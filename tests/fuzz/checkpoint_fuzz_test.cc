// Mutated checkpoints: each either opens, and then every tensor's bytes are there, or throws tokenmill::Error with one
// line. Anything else (another exception, a crash, a sanitizer's report) fails. TOKENMILL_FUZZ_ROUNDS sets the rounds.
#include <gtest/gtest.h>

#include <functional>

#include "checkpoint/checkpoint.h"
#include "fuzz/mutator.h"
#include "tokenmill/error.h"
#include "util/temp_folder.h"
#include "util/tiny_checkpoint.h"

namespace tokenmill {
namespace {

using namespace testing;  // NOLINT: the tests' own helpers

// Reads every byte, so that one outside the file is noticed.
uint64_t sum_of_bytes(const Checkpoint& checkpoint) {
  uint64_t sum = 0;
  for (const RawTensor* tensor : checkpoint.tensors()) {
    const RawTensor& found = checkpoint.get(tensor->name, tensor->shape);
    for (size_t i = 0; i < found.bytes(); ++i) sum += static_cast<uint64_t>(found.data[i]);
    checkpoint.release(found);
  }
  return sum;
}

void check_config(const ModelConfig& c) {
  EXPECT_EQ(c.num_heads % c.num_kv_heads, 0);
  EXPECT_EQ(c.head_dim % 2, 0);
  EXPECT_LE(c.head_dim, 256);
  EXPECT_EQ(static_cast<int64_t>(c.layer_window.size()), c.num_layers);
  EXPECT_GE(c.rope.factor, 1);
  EXPECT_GT(c.attention_scale, 0);
  for (int32_t id : c.eos_token_ids) EXPECT_LT(id, c.vocab_size);
  for (int32_t window : c.layer_window) EXPECT_GE(window, 0);
}

class CheckpointFuzz : public ::testing::Test {
 protected:
  // write(mutator): puts one mutated checkpoint down and returns its path.
  void run(const std::function<std::string(Mutator&)>& write, const CheckpointOptions& options = {}) {
    const bool dummy = options.load_format == "dummy";
    uint64_t opened = 0;
    const uint64_t rounds = fuzz_rounds();
    for (uint64_t round = 0; round < rounds; ++round) {
      Mutator mutator(round);
      const std::string path = write(mutator);
      try {
        const auto checkpoint = Checkpoint::open(path, options);
        check_config(checkpoint->config());
        if (!dummy) sum_ += sum_of_bytes(*checkpoint);
        ++opened;
      } catch (const Error& e) {
        const std::string message = e.what();
        EXPECT_EQ(message.find('\n'), std::string::npos) << "round " << round << ": " << message;
        EXPECT_LT(message.size(), 2000u) << "round " << round;
      } catch (const std::exception& e) {
        ADD_FAILURE() << "round " << round << ": " << e.what();
      }
    }
    // The mutations are worth something only where both ends are reached.
    EXPECT_GT(opened, 0u);
    EXPECT_LT(opened, rounds);
    std::printf("%llu of %llu mutated checkpoints opened\n", static_cast<unsigned long long>(opened),
                static_cast<unsigned long long>(rounds));
  }

  TempFolder folder_;
  uint64_t sum_ = 0;
};

TEST_F(CheckpointFuzz, Safetensors) {
  const nlohmann::json config = little_config();
  folder_.write("config.json", config.dump());
  const std::string sound = safetensors_bytes(little_tensors(config));
  uint64_t header = 0;
  std::memcpy(&header, sound.data(), 8);
  run([&](Mutator& mutator) {
    folder_.write("model.safetensors", mutator.mutate(sound, header + 8));
    return folder_.path();
  });
}

TEST_F(CheckpointFuzz, Index) {
  const nlohmann::json config = little_config();
  folder_.write("config.json", config.dump());
  std::vector<SafetensorsEntry> parts[2];
  nlohmann::json map;
  for (const SafetensorsEntry& tensor : little_tensors(config)) {
    const size_t part = map.size() % 2;
    map[tensor.name] = part == 0 ? "a.safetensors" : "b.safetensors";
    parts[part].push_back(tensor);
  }
  folder_.write("a.safetensors", safetensors_bytes(parts[0]));
  folder_.write("b.safetensors", safetensors_bytes(parts[1]));
  const std::string sound = nlohmann::json{{"metadata", {{"total_size", 1}}}, {"weight_map", map}}.dump();
  run([&](Mutator& mutator) {
    folder_.write("model.safetensors.index.json", mutator.mutate_json(sound));
    return folder_.path();
  });
}

nlohmann::json rich_config(const std::string& architecture) {
  nlohmann::json config = little_config(architecture);
  config["layer_types"] = {"full_attention", "full_attention"};
  config["rope_scaling"] = {{"rope_type", "llama3"},   {"factor", 8.0},
                            {"low_freq_factor", 1.0},  {"high_freq_factor", 4.0},
                            {"attention_factor", 1.0}, {"original_max_position_embeddings", 16}};
  config["sliding_window"] = 16;
  config["sliding_window_pattern"] = 2;
  config["use_sliding_window"] = true;
  config["max_window_layers"] = 1;
  config["hidden_act"] = "silu";
  config["attention_bias"] = false;
  return config;
}

TEST_F(CheckpointFuzz, Config) {
  const std::vector<std::string> sound = {
      rich_config("LlamaForCausalLM").dump(), rich_config("MistralForCausalLM").dump(),
      rich_config("Qwen2ForCausalLM").dump(), rich_config("Gemma3ForCausalLM").dump(),
      read_file(TOKENMILL_TEST_DATA "/tiny/gemma3/config.json")};
  CheckpointOptions options;
  options.load_format = "dummy";
  run(
      [&](Mutator& mutator) {
        const std::string& text = sound[mutator.below(sound.size())];
        folder_.write("config.json", mutator.mutate_json(text));
        folder_.write(
            "generation_config.json",
            mutator.below(4) == 0 ? mutator.mutate_json(R"({"eos_token_id": [1, 2], "bos_token_id": 3})") : "{}");
        return folder_.path();
      },
      options);
}

// The configuration and the weights do not fit each other.
TEST_F(CheckpointFuzz, ConfigAgainstWeights) {
  const nlohmann::json config = little_config("Gemma3ForCausalLM");
  folder_.write("model.safetensors", safetensors_bytes(little_tensors(config)));
  const std::string sound = config.dump();
  run([&](Mutator& mutator) {
    folder_.write("config.json", mutator.mutate_json(sound));
    return folder_.path();
  });
}

TEST_F(CheckpointFuzz, Gguf) {
  std::vector<std::pair<std::string, size_t>> sound;  // bytes, and where the tensors' data begin
  for (const char* architecture : {"llama", "gemma3", "qwen3"}) {
    for (WeightType type : {WeightType::kF32, WeightType::kQ4_1}) {
      LittleGguf little;
      little.architecture = architecture;
      little.type = type;
      GgufWriter writer = little_gguf(little);
      const float ones[] = {1, 1, 1, 1};
      writer.add_tensor("rope_freqs.weight", 0, {4}, std::string(reinterpret_cast<const char*>(ones), 16));
      writer.add_string(little.architecture + ".rope.scaling.type", "yarn");
      writer.add_f32(little.architecture + ".rope.scaling.factor", 2);
      const std::string bytes = writer.bytes();
      sound.emplace_back(bytes, bytes.find("rope_freqs.weight") + 64);
    }
  }
  run([&](Mutator& mutator) {
    const auto& [bytes, header] = sound[mutator.below(sound.size())];
    return folder_.write("model.gguf", mutator.mutate(bytes, header));
  });
}

}  // namespace
}  // namespace tokenmill
