// Mutated tokenizer and GGUF files either load and then work, or throw one line that names the file.

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "fuzz/mutator.h"
#include "text/tokenizer.h"
#include "tokenmill/error.h"

namespace tokenmill {
namespace {

std::string data_path(const std::string& name) { return std::string(TOKENMILL_TEST_DATA) + "/text/" + name; }

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void write_file(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

// Loads with `open` and uses what came out; returns whether it loaded.
template <class Open>
bool load_and_use(const Open& open, const std::string& path) {
  try {
    const auto tokenizer = open();
    const std::vector<int32_t> ids = tokenizer->encode("the engine reads 日本語 <s> x", true);
    (void)tokenizer->decode(ids, true);
    for (int32_t id = -1; id < 20; ++id) (void)tokenizer->token_bytes(id);
    return true;
  } catch (const Error& error) {
    const std::string message = error.what();
    const bool names_file = message.find(path) != std::string::npos;
    const bool in_use = message.starts_with("The text cannot be tokenized");
    EXPECT_TRUE(names_file || in_use) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    return false;
  }
}

TEST(TextFuzzTest, GgufVocabularies) {
  testing::Mutator mutator(11);
  const std::string path = ::testing::TempDir() + "tokenmill_text_fuzz.gguf";
  const std::string originals[] = {read_file(data_path("bpe.gguf")), read_file(data_path("spm.gguf"))};
  uint64_t loaded = 0;
  const uint64_t rounds = testing::fuzz_rounds();
  for (uint64_t round = 0; round < rounds; ++round) {
    const std::string& original = originals[round % 2];
    write_file(path, mutator.mutate(original, original.size()));
    loaded += load_and_use([&] { return Tokenizer::from_gguf(path); }, path);
  }
  EXPECT_LT(loaded, rounds) << "no mutation was refused";
  std::filesystem::remove(path);
}

TEST(TextFuzzTest, TokenizerFolders) {
  testing::Mutator mutator(12);
  const auto folder = std::filesystem::path(::testing::TempDir()) / "tokenmill_text_fuzz";
  uint64_t loaded = 0;
  const uint64_t rounds = testing::fuzz_rounds();
  for (uint64_t round = 0; round < rounds; ++round) {
    if (round % 1000 == 0) {
      std::filesystem::remove_all(folder);
      std::filesystem::copy(data_path(round % 2000 == 0 ? "bpe" : "spm"), folder);
    }
    const bool config = round % 4 == 0;
    const auto file = folder / (config ? "tokenizer_config.json" : "tokenizer.json");
    const std::string original = read_file(file.string());
    write_file(file, mutator.mutate_json(original));
    loaded += load_and_use([&] { return Tokenizer::from_folder(folder.string()); }, folder.string());
    write_file(file, original);
  }
  EXPECT_LT(loaded, rounds) << "no mutation was refused";
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace tokenmill
