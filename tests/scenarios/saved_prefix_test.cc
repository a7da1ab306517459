// Prefixes in files: what is loaded gives the bits of what is computed, and what does not fit is refused by name.
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <sstream>
#include <thread>

#include "engine/prefix_file.h"
#include "tokenmill/engine.h"

namespace tokenmill::testing {
namespace {

namespace fs = std::filesystem;

std::vector<int32_t> random_ids(uint64_t seed, size_t count) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % 384);
  return ids;
}

ServerArgs tiny_args(int64_t page_size) {
  ServerArgs args;
  args.model_path = std::string(TOKENMILL_TEST_DATA) + "/tiny/llama-tied";
  args.skip_tokenizer_init = true;
  args.log_level = "error";
  args.num_threads = 1;
  args.page_size = page_size;
  args.max_total_tokens = 2048;
  args.random_seed = 1;
  return args;
}

Request prompt_of(std::vector<int32_t> ids) {
  Request request;
  request.input_ids = std::move(ids);
  request.sampling_params.max_new_tokens = 16;
  request.sampling_params.ignore_eos = true;
  request.sampling_params.temperature = 0;
  request.return_logprob = true;
  return request;
}

std::vector<float> logprobs(const Output& output) {
  std::vector<float> values;
  for (const auto& entry : output.meta_info.output_token_logprobs) values.push_back(entry.logprob.value());
  return values;
}

std::string message_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

std::string read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

void write_text(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

class SavedPrefix : public ::testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("saved_prefix_" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string path(const char* name = "prefix") const { return (folder_ / name).string(); }

  fs::path folder_;
};
INSTANTIATE_TEST_SUITE_P(PageSizes, SavedPrefix, ::testing::Values(1, 16, 32, 64));

TEST_P(SavedPrefix, AnotherEngineGoesOnWithTheSameBits) {
  const std::vector<int32_t> prefix = random_ids(1, 150);
  std::vector<int32_t> whole = prefix;
  for (const int32_t id : random_ids(2, 20)) whole.push_back(id);
  const int64_t saved = 150 / GetParam() * GetParam();

  Engine first(tiny_args(GetParam()));
  const Output computed = first.generate(prompt_of(whole))[0];
  EXPECT_EQ(computed.meta_info.cached_tokens, 0);
  EXPECT_EQ(first.save_prefix(prompt_of(prefix), path()), saved);
  first.shutdown();

  Engine second(tiny_args(GetParam()));
  EXPECT_EQ(second.load_prefix(path()), saved);
  EXPECT_EQ(second.load_prefix(path(), "salt"), saved);
  const Output loaded = second.generate(prompt_of(whole))[0];
  EXPECT_EQ(loaded.meta_info.cached_tokens, saved);
  EXPECT_EQ(loaded.output_ids, computed.output_ids);
  EXPECT_EQ(logprobs(loaded), logprobs(computed));
  Request salted = prompt_of(whole);
  salted.cache_salt = "salt";
  EXPECT_EQ(second.generate(salted)[0].meta_info.cached_tokens, saved);
  salted.cache_salt = "another";
  EXPECT_EQ(second.generate(salted)[0].meta_info.cached_tokens, 0);
  // Again, over what is there already: nothing is held twice.
  EXPECT_EQ(second.load_prefix(path()), saved);
  EXPECT_TRUE(second.flush_cache());
  const auto stats = second.stats();
  EXPECT_EQ(stats.at("blocks_free"), stats.at("blocks_total"));
}

TEST_F(SavedPrefix, WhatDoesNotFitIsRefusedByName) {
  {
    Engine engine(tiny_args(32));
    engine.save_prefix(prompt_of(random_ids(1, 100)), path());
    EXPECT_EQ(fs::status(path()).permissions() & fs::perms::all, fs::perms::owner_read | fs::perms::owner_write);
    EXPECT_NE(message_of([&] { engine.save_prefix(prompt_of(random_ids(1, 31)), path("short")); }).find("page_size=32"),
              std::string::npos);
    EXPECT_FALSE(fs::exists(path("short")));
    const std::string nowhere = message_of([&] { engine.save_prefix(prompt_of(random_ids(1, 64)), path("no/where")); });
    EXPECT_NE(nowhere.find("could not be saved to " + path("no/where")), std::string::npos) << nowhere;
    EXPECT_NE(message_of([&] { engine.save_prefix(prompt_of({1, 2, 9999}), path()); }).find("9999"), std::string::npos);
    EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1);
  }
  const auto refused = [&](const std::function<void(ServerArgs&)>& change, const std::string& name) {
    ServerArgs args = tiny_args(32);
    change(args);
    Engine engine(args);
    const std::string message = message_of([&] { engine.load_prefix(path()); });
    EXPECT_NE(message.find(name), std::string::npos) << message;
    EXPECT_EQ(engine.generate(prompt_of(random_ids(1, 40)))[0].output_ids.size(), 16u);
  };
  refused([](ServerArgs& args) { args.page_size = 16; }, "its page_size is 32, this engine's is 16");
  refused([](ServerArgs& args) { args.dtype = "float32"; }, "its dtype is \"auto\", this engine's is \"float32\"");
  refused([](ServerArgs& args) { args.model_path = std::string(TOKENMILL_TEST_DATA) + "/tiny/llama-bias"; },
          "its model is ");
  refused([](ServerArgs& args) { args.json_model_override_args = R"({"rope_theta": 5000})"; }, "its model is ");
  refused([](ServerArgs& args) { args.load_format = "dummy"; }, "its model is ");
  refused([](ServerArgs& args) { args.disable_radix_cache = true; }, "disable_radix_cache");
  refused([](ServerArgs& args) { args.max_total_tokens = 64; }, "cannot take them now");
}

// One bit anywhere in the weights is another model, be it in the row of a token that the prefix has far behind.
TEST_F(SavedPrefix, EveryBitOfTheModelCounts) {
  const auto copy_model = [&](const char* name) {
    const fs::path from = fs::path(TOKENMILL_TEST_DATA) / "tiny" / "llama-tied", to = folder_ / name;
    fs::create_directory(to);
    for (const char* file : {"config.json", "model.safetensors"}) fs::copy_file(from / file, to / file);
    return to;
  };
  const auto flip_a_bit = [](const fs::path& model) {
    std::string weights = read_text((model / "model.safetensors").string());
    weights[weights.size() / 3] = static_cast<char>(weights[weights.size() / 3] ^ 1);
    write_text((model / "new").string(), weights);
    fs::rename(model / "new", model / "model.safetensors");
  };
  const fs::path model = copy_model("model"), other = copy_model("other");
  flip_a_bit(other);
  ServerArgs args = tiny_args(32);
  args.model_path = model.string();
  Engine engine(args);
  EXPECT_EQ(engine.save_prefix(prompt_of(random_ids(1, 200)), path()), 192);
  args.model_path = other.string();
  EXPECT_NE(message_of([&] { Engine(args).load_prefix(path()); }).find("its model is "), std::string::npos);

  // A model that was replaced under its engine: the files no longer tell what the engine computes.
  args.model_path = model.string();
  Engine late(args);
  flip_a_bit(model);
  for (const auto& work : {std::function<void()>([&] { late.load_prefix(path()); }),
                           std::function<void()>([&] { late.save_prefix(prompt_of(random_ids(1, 200)), path()); })}) {
    const std::string message = message_of(work);
    EXPECT_NE(message.find("model.safetensors has changed since this engine loaded it"), std::string::npos) << message;
  }
  // The first engine has told its model apart before.
  EXPECT_EQ(engine.load_prefix(path()), 192);
}

TEST_F(SavedPrefix, TakesOnlyTheRoomThatItNeeds) {
  ServerArgs args = tiny_args(32);
  args.max_total_tokens = 640;
  Engine engine(args);
  EXPECT_EQ(engine.save_prefix(prompt_of(random_ids(1, 416)), path()), 416);
  {
    const PinnedPrefix pin = engine.pin(prompt_of(random_ids(1, 416)));
    EXPECT_EQ(engine.load_prefix(path()), 416);  // is there already
  }
  engine.save_prefix(prompt_of(random_ids(2, 96)), path());
  engine.flush_cache();
  const PinnedPrefix pin = engine.pin(prompt_of(random_ids(3, 480)));  // all that pins may have
  EXPECT_EQ(engine.load_prefix(path()), 96);
  const Output output = engine.generate(prompt_of(random_ids(2, 97)))[0];
  EXPECT_EQ(output.meta_info.cached_tokens, 96);
}

TEST_F(SavedPrefix, DamagedFilesAreRefused) {
  Engine engine(tiny_args(16));
  engine.save_prefix(prompt_of(random_ids(1, 100)), path());
  engine.flush_cache();
  const std::string good = read_text(path());
  const std::string bad = path("bad");
  const auto refused = [&](const std::string& text, const std::string& part) {
    write_text(bad, text);
    const std::string message = message_of([&] { engine.load_prefix(bad); });
    EXPECT_NE(message.find(bad), std::string::npos) << message;
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  for (const size_t size : {good.size() - 1, good.size() - 64, good.size() / 2, size_t{40}, size_t{20}, size_t{19}}) {
    refused(good.substr(0, size), "cut or damaged");
  }
  for (const size_t place : {size_t{20}, size_t{60}, good.size() / 2, good.size() - 65, good.size() - 1}) {
    std::string text = good;
    text[place] = static_cast<char>(text[place] ^ 1);
    refused(text, "cut or damaged");
  }
  refused(good + "x", "cut or damaged");
  for (const char* const version : {"1", "3"})
    refused(std::string("tokenmill-prefix ") + version + "\n" + good, "another format");
  refused("{}", "is no file of save_prefix()");
  EXPECT_NE(message_of([&] { engine.load_prefix(path("missing")); }).find(path("missing")), std::string::npos);
  EXPECT_NE(message_of([&] { engine.load_prefix(folder_.string()); }).find(folder_.string()), std::string::npos);

  // Sound files whose content is not what this engine would write.
  const auto forged = [&](const std::function<void(PrefixFile&, std::vector<std::byte>&)>& change) {
    PrefixFile file = read_prefix_file(path());
    std::vector<std::byte> kv(file.kv.begin(), file.kv.end());
    change(file, kv);
    file.kv = kv;
    write_prefix_file(bad, file);
    return message_of([&] { engine.load_prefix(bad); });
  };
  EXPECT_EQ(forged([](PrefixFile&, std::vector<std::byte>&) {}), "nothing was thrown");
  EXPECT_NE(forged([](PrefixFile&, std::vector<std::byte>& kv) { kv[5] ^= std::byte{1}; }).find("other bits"),
            std::string::npos);
  EXPECT_NE(forged([](PrefixFile& file, std::vector<std::byte>&) { file.tokens[3] += 1; }).find("other bits"),
            std::string::npos);
  EXPECT_NE(forged([](PrefixFile& file, std::vector<std::byte>&) { file.tokens[3] = 1 << 20; }).find("damaged"),
            std::string::npos);
  EXPECT_NE(forged([](PrefixFile& file, std::vector<std::byte>&) { file.tokens.pop_back(); }).find("damaged"),
            std::string::npos);
  EXPECT_NE(forged([](PrefixFile&, std::vector<std::byte>& kv) { kv.pop_back(); }).find("damaged"), std::string::npos);
  EXPECT_NE(forged([](PrefixFile& file, std::vector<std::byte>&) {
              file.key["tokenmill version"] = "0.0";
            }).find("its tokenmill version is \"0.0\""),
            std::string::npos);
  EXPECT_NE(forged([](PrefixFile& file, std::vector<std::byte>&) {
              file.key["code path"] = "another";
            }).find("its code path is \"another\""),
            std::string::npos);
  EXPECT_EQ(engine.generate(prompt_of(random_ids(1, 40)))[0].output_ids.size(), 16u);
}

TEST_F(SavedPrefix, ShutdownWhileOthersSaveAndLoad) {
  for (int round = 0; round < 10; ++round) {
    Engine engine(tiny_args(32));
    engine.save_prefix(prompt_of(random_ids(1, 480)), path());
    const auto repeat = [](const std::function<void()>& work) {
      EXPECT_THROW(
          {
            for (;;) work();
          },
          Error);
    };
    std::thread loads(repeat, [&] { engine.load_prefix(path()); });
    std::thread saves(repeat, [&] { engine.save_prefix(prompt_of(random_ids(1, 480)), path("other")); });
    std::this_thread::sleep_for(std::chrono::milliseconds(2 * round));
    engine.shutdown();
    loads.join();
    saves.join();
    EXPECT_THROW(engine.load_prefix(path()), Error);
    EXPECT_THROW(engine.save_prefix(prompt_of(random_ids(1, 480)), path()), Error);
  }
}

TEST_F(SavedPrefix, ThreadsThatSaveToOnePathLeaveOneWholeFile) {
  Engine engine(tiny_args(16));
  for (int round = 0; round < 20; ++round) {
    std::thread other([&] { EXPECT_NO_THROW(engine.save_prefix(prompt_of(random_ids(2, 480)), path())); });
    EXPECT_NO_THROW(engine.save_prefix(prompt_of(random_ids(1, 160)), path()));
    other.join();
    const int64_t loaded = engine.load_prefix(path());
    EXPECT_TRUE(loaded == 160 || loaded == 480) << loaded;
    EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1);
  }
}

}  // namespace
}  // namespace tokenmill::testing
