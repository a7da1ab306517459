// TextStream: joined deltas, UTF-8, stop strings, context; the reference streams where they are given.

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "text/stop_matcher.h"
#include "text/text_stream.h"
#include "text_fixtures.h"

namespace tokenmill {
namespace {

using namespace testing;
using Ids = std::vector<int32_t>;

bool is_valid_utf8(const std::string& text) {
  try {
    (void)Json(text).dump();
    return true;
  } catch (const Json::exception&) {
    return false;
  }
}

std::string stream_all(const std::shared_ptr<const Tokenizer>& tokenizer, const Ids& prompt, const Ids& ids,
                       TextStreamOptions options, std::mt19937& random) {
  TextStream stream(tokenizer, prompt, options);
  std::string joined;
  for (size_t at = 0; at < ids.size();) {
    const size_t count = std::min<size_t>(ids.size() - at, random() % 5);
    const std::string delta = stream.append(std::span(ids).subspan(at, count), static_cast<int64_t>(random() % 9));
    EXPECT_TRUE(is_valid_utf8(delta));
    joined += delta;
    at += count;
  }
  return joined + stream.finish(-1);
}

// decode(prompt + output) less decode(prompt).
std::string whole_text(const Tokenizer& tokenizer, const Ids& prompt, const Ids& ids, bool skip) {
  Ids all(prompt);
  all.insert(all.end(), ids.begin(), ids.end());
  return tokenizer.decode(all, skip).substr(tokenizer.decode(prompt, skip).size());
}

void check_text_streams(const std::shared_ptr<const Tokenizer>& tokenizer, int trials) {
  std::mt19937 random(6);
  for (int trial = 0; trial < trials; ++trial) {
    const TextStreamOptions options{.skip_special_tokens = trial % 2 == 0};
    Ids ids = tokenizer->encode(random_text(random, 25), false);
    const Ids prompt = tokenizer->encode("Hello" + random_text(random, 3) + " a", true);
    const std::string want = whole_text(*tokenizer, prompt, ids, options.skip_special_tokens);
    ASSERT_EQ(stream_all(tokenizer, prompt, ids, options, random), want);
    // Ids between which special ones lie.
    for (int n = 0; n < 3; ++n) ids.insert(ids.begin() + static_cast<std::ptrdiff_t>(random() % (ids.size() + 1)), 1);
    const std::string mixed = whole_text(*tokenizer, prompt, ids, options.skip_special_tokens);
    const bool inside_character = mixed.find("\xef\xbf\xbd") != std::string::npos;
    if (!inside_character) {
      ASSERT_EQ(stream_all(tokenizer, prompt, ids, options, random), mixed);
    }
  }
}

// Any ids: the cut into appends never matters, and where no run of byte tokens changes its meaning the text is
// decode's.
void check_random_ids(const std::shared_ptr<const Tokenizer>& tokenizer, int trials, bool byte_level) {
  std::mt19937 random(7);
  for (int trial = 0; trial < trials; ++trial) {
    const auto size = static_cast<uint32_t>(trial % 3 == 0 ? std::min<int64_t>(tokenizer->vocab_size(), 600)
                                                           : tokenizer->vocab_size());
    Ids ids;
    for (size_t n = random() % 40; n > 0; --n) ids.push_back(static_cast<int32_t>(random() % size));
    const TextStreamOptions options{.skip_special_tokens = trial % 2 == 0};
    const std::string one = stream_all(tokenizer, {}, ids, options, random);
    ASSERT_EQ(stream_all(tokenizer, {}, ids, options, random), one);
    if (byte_level) {
      ASSERT_EQ(one, tokenizer->decode(ids, options.skip_special_tokens));
    }
  }
}

// A stop string cut out of the output's bytes: nothing of it and nothing after it is shown, all before it is.
void check_stops(const std::shared_ptr<const Tokenizer>& tokenizer, int trials) {
  std::mt19937 random(8);
  int matched = 0;
  for (int trial = 0; trial < trials; ++trial) {
    const Ids ids = tokenizer->encode("go" + random_text(random, 12), false);
    std::string bytes;
    for (const int32_t id : ids) bytes += tokenizer->token_bytes(id);
    const size_t from = random() % bytes.size();
    const std::string stop = bytes.substr(from, 1 + random() % 6);
    const bool trim = trial % 3 != 0;
    const TextStreamOptions options{.skip_special_tokens = false};
    StopMatcher matcher(
        std::make_shared<const StopPatterns>(std::vector<std::string>{stop}, std::vector<std::string>()));
    const Ids prompt = tokenizer->encode("x", false);  // so that no space is trimmed: text and bytes agree
    TextStream stream(tokenizer, prompt, options);
    std::string joined;
    for (const int32_t id : ids) {
      const auto match = matcher.append(tokenizer->token_bytes(id));
      // A match is complete and holds nothing any more: its end is finish's affair.
      const int64_t held = match ? std::numeric_limits<int64_t>::max() : matcher.held_bytes();
      joined += stream.append(std::span(&id, 1), held);
      if (!match) continue;
      const int64_t end = trim ? match->begin : match->end;
      joined += stream.finish(end);
      std::string want = bytes.substr(0, static_cast<size_t>(end));
      while (!is_valid_utf8(want)) want.pop_back();
      // A character that the end cuts through is not shown, or as U+FFFD.
      ASSERT_TRUE(joined.starts_with(want));
      std::string rest = joined.substr(want.size());
      while (!trim && rest.ends_with("\xef\xbf\xbd")) rest.resize(rest.size() - 3);
      ASSERT_EQ(rest, "");
      ++matched;
      break;
    }
  }
  EXPECT_EQ(matched, trials);
}

TEST(TextStreamTest, FixturesJoinToTheWholeText) {
  for (const char* name : {"bpe", "spm"}) {
    const auto tokenizer = Tokenizer::from_folder(data_path(name));
    check_text_streams(tokenizer, 400);
    check_random_ids(tokenizer, 600, std::string(name) == "bpe");
  }
}

TEST(TextStreamTest, StopStringsAreTrimmedAtTheByte) {
  for (const char* name : {"bpe", "spm"}) check_stops(Tokenizer::from_folder(data_path(name)), 1500);
}

TEST(TextStreamTest, FirstTokenKeepsItsSpaceAfterAPrompt) {
  const auto tokenizer = Tokenizer::from_folder(data_path("spm"));
  const Ids ids = tokenizer->encode("the engine", false);
  TextStream after_prompt(tokenizer, tokenizer->encode("a", true), {});
  EXPECT_EQ(after_prompt.append(ids, 0), " the engine");
  TextStream alone(tokenizer, {}, {});
  EXPECT_EQ(alone.append(ids, 0), "the engine");
  // A skipped special token is no context.
  TextStream after_bos(tokenizer, Ids{1}, {});
  EXPECT_EQ(after_bos.append(ids, 0), "the engine");
}

TEST(TextStreamTest, CharactersWaitForTheirLastByte) {
  const auto tokenizer = Tokenizer::from_folder(data_path("bpe"));
  const Ids ids = tokenizer->encode("\U0001F680", false);
  ASSERT_GT(ids.size(), 1u);
  TextStream stream(tokenizer, {}, {});
  std::string joined;
  for (size_t i = 0; i + 1 < ids.size(); ++i) EXPECT_EQ(stream.append(std::span(&ids[i], 1), 0), "");
  EXPECT_EQ(stream.append(std::span(&ids.back(), 1), 0), "\U0001F680");
  TextStream torn(tokenizer, {}, {});
  torn.append(std::span(ids).first(1), 0);
  EXPECT_EQ(torn.finish(-1), "\xef\xbf\xbd");
}

TEST(TextStreamTest, CharacterBegunInThePromptIsFinished) {
  const auto tokenizer = Tokenizer::from_folder(data_path("bpe"));
  const Ids ids = tokenizer->encode("ab\U0001F680", false);
  const Ids prompt(ids.begin(), ids.end() - 1);
  TextStream stream(tokenizer, prompt, {});
  EXPECT_EQ(stream.append(std::span(&ids.back(), 1), 0), "\U0001F680");
}

TEST(TextStreamTest, HeldBytesStayUntilTheyAreFree) {
  const auto tokenizer = Tokenizer::from_folder(data_path("bpe"));
  TextStream stream(tokenizer, {}, {});
  EXPECT_EQ(stream.append(tokenizer->encode("abcdé", false), 3), "abc") << "3 bytes: d and the two of é";
  EXPECT_EQ(stream.append({}, 1), "d") << "never half a character";
  EXPECT_EQ(stream.append({}, 0), "é");
  EXPECT_EQ(stream.finish(-1), "");
}

TEST(TextStreamGoldenTest, ReferenceStreams) {
  const std::string models = folder_from_env("TOKENMILL_TEST_MODELS"),
                    shared = folder_from_env("TOKENMILL_TEST_SHARED");
  if (models.empty() || shared.empty())
    GTEST_SKIP() << "not run: TOKENMILL_TEST_MODELS or TOKENMILL_TEST_SHARED is unset";
  for (const std::string name :
       {"smollm2", "deepseek_v3", "gemma3", "gpt4o", "gptoss", "llama2", "llama3_1", "qwen3"}) {
    const auto tokenizer =
        Tokenizer::from_folder(models + (name == "smollm2" ? "/smollm2-135m-bf16" : "/tokenizers/" + name));
    for (const Json& line : read_lines(shared + "/tok/" + name + ".stream.jsonl")) {
      TextStream stream(tokenizer, {}, {.skip_special_tokens = line.value("skip_special", false)});
      Json pieces = Json::array();
      std::string joined;
      for (const int32_t id : line.at("ids").get<Ids>()) {
        pieces.push_back(stream.append(std::span(&id, 1), 0));
        joined += pieces.back().get<std::string>();
      }
      const std::string flush = stream.finish(-1);
      const bool exact = pieces == line.at("exact") && flush == line.at("exact_flush");
      const bool sglang = line.contains("sglang") && pieces == line.at("sglang") && flush == line.at("sglang_flush");
      const bool whole = line.at("kind") != "line" && joined + flush == line.at("full").get<std::string>();
      EXPECT_TRUE(exact || sglang || whole) << name << " " << pieces.dump();
    }
    const bool byte_level = name != "gemma3" && name != "llama2";
    check_text_streams(tokenizer, 60);
    check_random_ids(tokenizer, 200, byte_level);
    check_stops(tokenizer, 100);
  }
}

TEST(TextStreamGoldenTest, WordPieceJoinsToTheWholeText) {
  const std::string models = folder_from_env("TOKENMILL_TEST_MODELS");
  if (models.empty()) GTEST_SKIP() << "not run: TOKENMILL_TEST_MODELS is unset";
  const auto tokenizer = Tokenizer::from_folder(models + "/minilm-l6-v2");
  check_text_streams(tokenizer, 60);
  check_random_ids(tokenizer, 200, false);
}

}  // namespace
}  // namespace tokenmill
