// What shutdown() gives back, and what a shut-down engine still answers.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "scenarios/shadow_model.h"
#include "util/expect_error.h"

namespace tokenmill::testing {
namespace {

int64_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  int64_t total = 0, resident = 0;
  statm >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

// After the first `warm_up` engines nothing is added. What a large tokenizer adds in them, about 1 MiB, is the
// allocators' own: mimalloc never gives back its records of pages, one for each 64 KiB, and each engine has its blocks
// in other places until all records have been used; malloc() keeps some 100 KiB for each of its heaps.
template <class MakeAndUse>
void expect_memory_back(MakeAndUse make_and_use, int warm_up = 1) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "not run: a sanitizer keeps freed memory";
#endif
  for (int i = 0; i < warm_up; ++i) make_and_use(i);
  const int64_t warm = resident_bytes();
  for (int i = warm_up; i < 20; ++i) make_and_use(i);
  const int64_t last = resident_bytes();
  std::printf("[ resident ] %.1f MiB after engine %d, %.1f MiB after engine 20\n",
              static_cast<double>(warm) / (1 << 20), warm_up, static_cast<double>(last) / (1 << 20));
  EXPECT_LE(last, warm + warm * 3 / 100);
}

TEST(EngineMemory, TwentyShadowEngines) {
  expect_memory_back([](int i) {
    Engine engine = make_shadow_engine({.model = {}, .args = {}, .tokenizer = true, .on_log = nullptr});
    EXPECT_EQ(engine.generate(ids_request({1, 2, i}, 3))[0].output_ids, shadow_greedy({1, 2, i}, 3));
    if (i % 2 == 0) engine.shutdown();
  });
}

void expect_memory_of_real_engines_back(const std::string& model, int warm_up = 1) {
  const char* const models = std::getenv("TOKENMILL_TEST_MODELS");
  if (models == nullptr) GTEST_SKIP() << "not run: TOKENMILL_TEST_MODELS is not set";
  const std::string path = std::string(models) + "/" + model;
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "not run: no " << path;
  const auto make_and_use = [&](int) {
    ServerArgs args;
    args.model_path = path;
    args.log_level = "error";
    args.max_total_tokens = 2048;
    Engine engine(args);
    EXPECT_EQ(engine.generate(ids_request({1, 2, 3}, 3))[0].output_ids.size(), 3u);
  };
  expect_memory_back(make_and_use, warm_up);
}

TEST(EngineMemory, TwentyEnginesOfARealModel) {
  expect_memory_of_real_engines_back("gguf/SmolLM2-135M-Instruct.Q4_1.gguf");
}

TEST(EngineMemory, TwentyEnginesOfALargeVocabulary) {
  expect_memory_of_real_engines_back("gemma3-270m-bf16", /*warm_up=*/5);
}

TEST(EngineMemory, AShutDownEngineHasNoTokenizerButKeepsItsFacts) {
  OpenEngine open({.model = {}, .args = {}, .tokenizer = true, .on_log = nullptr});
  Engine& engine = open.engine;
  const std::weak_ptr<const Tokenizer> tokenizer = open.core->tokenizer();
  EXPECT_FALSE(tokenizer.expired());
  (void)engine.generate(ids_request({1, 2, 3}, 3));
  engine.shutdown();
  EXPECT_TRUE(tokenizer.expired());
  const char* const message = "The engine was shut down.";
  EXPECT_LOAD_ERROR((void)engine.encode_text("hi"), ErrorKind::kRuntime, message);
  EXPECT_LOAD_ERROR((void)engine.decode_ids({1}), ErrorKind::kRuntime, message);
  EXPECT_LOAD_ERROR((void)engine.apply_chat_template("[]"), ErrorKind::kRuntime, message);
  EXPECT_LOAD_ERROR((void)engine.generate(ids_request({1}, 1)), ErrorKind::kRuntime, message);
  EXPECT_LOAD_ERROR((void)engine.flush_cache(), ErrorKind::kRuntime, message);
  engine.abort_all();
  engine.abort("nobody");
  EXPECT_EQ(engine.eos_token_ids(), std::vector<int32_t>{256});
  EXPECT_EQ(engine.vocab_size(), 512);
  EXPECT_EQ(engine.stats().at("finished"), 1);
  EXPECT_NE(engine.server_info_json().find("max_total_num_tokens"), std::string::npos);
}

}  // namespace
}  // namespace tokenmill::testing
