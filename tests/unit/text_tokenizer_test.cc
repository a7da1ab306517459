// Tokenizers from folders and GGUF files: ids, bytes of tokens, special tokens, errors; goldens where they are given.

#include <gtest/gtest.h>

#include <filesystem>

#include "text/tokenizer.h"
#include "text_fixtures.h"
#include "tokenmill/error.h"

namespace tokenmill {
namespace {

using namespace testing;
using Ids = std::vector<int32_t>;

void expect_same_ids(const Tokenizer& a, const Tokenizer& b, int trials, unsigned seed) {
  std::mt19937 random(seed);
  for (int i = 0; i < trials; ++i) {
    const std::string text = random_text(random, i % 10 == 0 ? 200 : 12);
    ASSERT_EQ(a.encode(text, false), b.encode(text, false)) << text;
    ASSERT_EQ(a.encode(text, true), b.encode(text, true)) << text;
  }
}

void expect_round_trip(const Tokenizer& tokenizer, unsigned seed) {
  std::mt19937 random(seed);
  for (int i = 0; i < 300; ++i) {
    const std::string text = random_text(random, 12);
    // U+2581 is SentencePiece's own mark for a space and comes back as one.
    if (text.find("▁") != std::string::npos) continue;
    const Ids ids = tokenizer.encode(text, false);
    ASSERT_EQ(tokenizer.decode(ids, false), text);
  }
}

TEST(TokenizerTest, ByteLevelFixtureRoundTripsAndKnowsItsTokens) {
  const auto tokenizer = Tokenizer::from_folder(data_path("bpe"));
  expect_round_trip(*tokenizer, 1);
  EXPECT_EQ(tokenizer->bos_token_id(), 1);
  EXPECT_EQ(tokenizer->eos_token_id(), 2);
  EXPECT_EQ(tokenizer->eos_token_ids(), Ids{2});
  EXPECT_EQ(tokenizer->bos_token(), "<|im_start|>");
  EXPECT_EQ(tokenizer->eos_token(), "<|im_end|>");
  EXPECT_TRUE(tokenizer->is_special(0));
  EXPECT_FALSE(tokenizer->is_special(3));
  EXPECT_FALSE(tokenizer->is_special(-1));
  EXPECT_NE(tokenizer->chat_template().find("im_start"), std::string::npos) << "the template named default";
  const int64_t size = tokenizer->vocab_size();
  EXPECT_FALSE(tokenizer->token_bytes(static_cast<int32_t>(size - 1)).empty());
  EXPECT_TRUE(tokenizer->token_bytes(static_cast<int32_t>(size)).empty());
  EXPECT_TRUE(tokenizer->token_bytes(-1).empty());
  EXPECT_EQ(tokenizer->token_bytes(1), "<|im_start|>");
}

TEST(TokenizerTest, TokenBytesJoinedAreTheText) {
  for (const char* name : {"bpe", "spm"}) {
    const auto tokenizer = Tokenizer::from_folder(data_path(name));
    std::mt19937 random(2);
    for (int i = 0; i < 300; ++i) {
      std::string text = random_text(random, 10), joined;
      if (text.find("▁") != std::string::npos) continue;
      for (const int32_t id : tokenizer->encode(text, false)) joined += tokenizer->token_bytes(id);
      // Llama's tokenizer puts a space before each stretch of text; its decoder trims the first.
      const bool is_spm = std::string(name) == "spm";
      if (is_spm && text.find("<s>") != std::string::npos) continue;
      ASSERT_EQ(joined, is_spm && !text.empty() ? " " + text : text);
    }
  }
}

TEST(TokenizerTest, ByteTokensAreTheirByte) {
  const auto tokenizer = Tokenizer::from_folder(data_path("spm"));
  const auto id = tokenizer->token_to_id("<0xF0>");
  ASSERT_TRUE(id.has_value());
  EXPECT_EQ(tokenizer->token_bytes(*id), "\xf0");
  EXPECT_EQ(tokenizer->decode(Ids{*id}, false), "\xef\xbf\xbd");
}

TEST(TokenizerTest, GgufVocabulariesGiveTheIdsOfTokenizerJson) {
  for (const std::string name : {"bpe", "spm"}) {
    const auto folder = Tokenizer::from_folder(data_path(name));
    const auto gguf = Tokenizer::from_gguf(data_path(name + ".gguf"));
    expect_same_ids(*folder, *gguf, 1000, 3);
    EXPECT_EQ(folder->vocab_size(), gguf->vocab_size());
    for (int32_t id = 0; id < folder->vocab_size(); ++id) {
      ASSERT_EQ(folder->token_bytes(id), gguf->token_bytes(id)) << id;
      ASSERT_EQ(folder->is_special(id), gguf->is_special(id)) << id;
    }
    EXPECT_EQ(folder->bos_token_id(), gguf->bos_token_id());
    EXPECT_EQ(folder->eos_token_id(), gguf->eos_token_id());
  }
  const auto bpe = Tokenizer::from_gguf(data_path("bpe.gguf"));
  EXPECT_EQ(bpe->eos_token_ids(), (Ids{2, 0}));
  EXPECT_EQ(bpe->chat_template(), Tokenizer::from_folder(data_path("bpe"))->chat_template());
}

TEST(TokenizerTest, EncodePromptAddsOneBosAtMost) {
  const auto tokenizer = Tokenizer::from_folder(data_path("spm"));
  const Ids plain = tokenizer->encode("the engine", true);
  ASSERT_EQ(plain[0], 1);
  EXPECT_EQ(tokenizer->encode_prompt("the engine"), plain);
  const Ids twice = tokenizer->encode("<s>the engine", true);
  ASSERT_EQ(twice[1], 1);
  EXPECT_EQ(tokenizer->encode_prompt("<s>the engine"), Ids(twice.begin() + 1, twice.end()));
}

TEST(TokenizerTest, InvalidUtf8NamesItsByte) {
  const auto tokenizer = Tokenizer::from_folder(data_path("bpe"));
  try {
    tokenizer->encode("ab\xff", false);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kValue);
    EXPECT_NE(std::string(error.what()).find("byte 2"), std::string::npos) << error.what();
  }
}

// Makes a folder of the byte-level fixture with one file replaced and returns the error that loading it gives.
std::string load_error(const std::string& name, const std::string& content) {
  const auto folder = std::filesystem::path(::testing::TempDir()) / "tokenmill_text_bad";
  std::filesystem::remove_all(folder);
  std::filesystem::copy(data_path("bpe"), folder);
  std::ofstream(folder / name, std::ios::binary) << content;
  try {
    Tokenizer::from_folder(folder.string());
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kValue);
    return error.what();
  }
  return "";
}

TEST(TokenizerTest, AnImpossibleIdTakesNoMemory) {
  const auto folder = std::filesystem::path(::testing::TempDir()) / "tokenmill_text_huge_id";
  std::filesystem::remove_all(folder);
  std::filesystem::copy(data_path("bpe"), folder);
  std::string json = read_file(data_path("bpe/tokenizer.json"));
  const std::string vocab = "\"vocab\":";
  const size_t at = json.find('{', json.find(vocab));
  ASSERT_NE(at, std::string::npos);
  json.insert(at + 1, "\"zqzq\": 4294967295,");
  std::ofstream(folder / "tokenizer.json", std::ios::binary) << json;
  const auto tokenizer = Tokenizer::from_folder(folder.string());
  EXPECT_EQ(tokenizer->vocab_size(), 1 << 24);
  EXPECT_FALSE(tokenizer->token_bytes(65).empty());
  EXPECT_TRUE(tokenizer->token_bytes(1 << 24).empty());
}

TEST(TokenizerTest, BadFilesGiveOneLineWithTheFile) {
  const std::string json = read_file(data_path("bpe/tokenizer.json"));
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"tokenizer.json", ""},
      {"tokenizer.json", "{}"},
      {"tokenizer.json", json.substr(0, json.size() / 2)},
      {"tokenizer.json", std::string(100000, '[')},
      {"tokenizer.json", "\xff\xfe"},
      {"tokenizer_config.json", "[]"},
      {"tokenizer_config.json", "{\"bos_token\": 5}"},
      {"tokenizer_config.json", "{\"chat_template\": 5}"},
      {"tokenizer_config.json", "{\"chat_template\": [{\"name\": \"a\"}]}"},
      {"tokenizer_config.json", "{\"add_bos_token\": \"yes\"}"},
      {"tokenizer_config.json", "{\"bos_token\": \"x\"}{"}};
  for (const auto& [name, content] : cases) {
    const std::string error = load_error(name, content);
    EXPECT_NE(error.find(name), std::string::npos) << content.substr(0, 50) << " -> " << error;
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  }
  EXPECT_THROW(Tokenizer::from_folder("/nonexistent"), Error);
}

TEST(TokenizerTest, UnknownPreTokenizerListsTheKnownOnes) {
  std::string gguf = read_file(data_path("bpe.gguf"));
  const size_t at = gguf.find("gpt-2");
  ASSERT_NE(at, std::string::npos);
  gguf.replace(at, 5, "gpt-9");
  const std::string path = ::testing::TempDir() + "tokenmill_text_pre.gguf";
  std::ofstream(path, std::ios::binary) << gguf;
  try {
    Tokenizer::from_gguf(path);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("'gpt-9'"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("smollm"), std::string::npos) << error.what();
  }
}

struct Named {
  std::string golden, model;
};

std::vector<Named> all_models() {
  std::vector<Named> models = {{"smollm2", "smollm2-135m-bf16"},
                               {"smollm2", "gguf/SmolLM2-135M-Instruct.Q4_1.gguf"},
                               {"gemma3", "gguf/gemma-3-270m-q4_k_m.gguf"},
                               {"minilm", "minilm-l6-v2"}};
  for (const char* name : {"deepseek_v3", "gemma3", "gpt4o", "gptoss", "llama2", "llama3_1", "qwen3"}) {
    models.push_back({name, std::string("tokenizers/") + name});
  }
  return models;
}

std::shared_ptr<const Tokenizer> open(const std::string& path) {
  return path.ends_with(".gguf") ? Tokenizer::from_gguf(path) : Tokenizer::from_folder(path);
}

TEST(TokenizerGoldenTest, EncodeAndDecode) {
  const std::string models = folder_from_env("TOKENMILL_TEST_MODELS"),
                    shared = folder_from_env("TOKENMILL_TEST_SHARED");
  if (models.empty() || shared.empty())
    GTEST_SKIP() << "not run: TOKENMILL_TEST_MODELS or TOKENMILL_TEST_SHARED is unset";
  const auto corpus = read_lines(shared + "/tok/corpus.jsonl");
  for (const auto& [golden, model] : all_models()) {
    const auto tokenizer = open(models + "/" + model);
    const auto lines = read_lines(shared + "/tok/" + golden + ".encode.jsonl");
    ASSERT_EQ(lines.size(), corpus.size());
    for (size_t i = 0; i < lines.size(); ++i) {
      const std::string text = corpus[i].get<std::string>();
      const Ids ids = tokenizer->encode(text, false);
      EXPECT_EQ(ids, lines[i].at("ids").get<Ids>()) << model << " line " << i;
      Ids special = lines[i].value("ids_special", Ids());
      if (special.empty()) {
        special = lines[i].value("pre", Ids());
        special.insert(special.end(), ids.begin(), ids.end());
      }
      EXPECT_EQ(tokenizer->encode(text, true), special) << model << " line " << i;
      const std::string decoded = lines[i].value("dec", text);
      EXPECT_EQ(tokenizer->decode(ids, false), decoded) << model << " line " << i;
      // A GGUF file calls Gemma's unused tokens control tokens, which tokenizer.json does not.
      if (golden == "gemma3" && model.ends_with(".gguf")) continue;
      EXPECT_EQ(tokenizer->decode(ids, true), lines[i].value("dec_skip", decoded)) << model << " line " << i;
    }
  }
}

TEST(TokenizerGoldenTest, GgufEqualsTokenizerJsonOnRandomText) {
  const std::string models = folder_from_env("TOKENMILL_TEST_MODELS");
  if (models.empty()) GTEST_SKIP() << "not run: TOKENMILL_TEST_MODELS is unset";
  for (const auto& [folder, gguf] : {Named{"smollm2-135m-bf16", "SmolLM2-135M-Instruct.Q4_1.gguf"},
                                     Named{"gemma3-270m-bf16", "gemma-3-270m-q4_k_m.gguf"}}) {
    expect_same_ids(*open(models + "/" + folder), *open(models + "/gguf/" + gguf), 3000, 4);
  }
}

}  // namespace
}  // namespace tokenmill
