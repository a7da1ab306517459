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
    ASSERT_EQ(stream_all(tokenizer, prompt, ids, options, random), mixed);
  }
}

// Any ids: the cut into appends never matters, and the text is decode's; but for WordPiece, whose decoder cleans up
// what is before punctuation.
void check_random_ids(const std::shared_ptr<const Tokenizer>& tokenizer, int trials, bool cleans_up = false) {
  std::mt19937 random(7);
  for (int trial = 0; trial < trials; ++trial) {
    const auto size = static_cast<uint32_t>(trial % 3 == 0 ? std::min<int64_t>(tokenizer->vocab_size(), 600)
                                                           : tokenizer->vocab_size());
    Ids ids;
    for (size_t n = random() % 40; n > 0; --n) ids.push_back(static_cast<int32_t>(random() % size));
    const TextStreamOptions options{.skip_special_tokens = trial % 2 == 0};
    const std::string one = stream_all(tokenizer, {}, ids, options, random);
    ASSERT_EQ(stream_all(tokenizer, {}, ids, options, random), one);
    if (!cleans_up) {
      ASSERT_EQ(one, tokenizer->decode(ids, options.skip_special_tokens));
    }
  }
}

// Ids of single bytes: <0x00> … <0xFF>, or a byte-level vocabulary's letters.
Ids byte_ids(const Tokenizer& tokenizer) {
  Ids ids(256, -1);
  for (int32_t id = 0; id < static_cast<int32_t>(tokenizer.vocab_size()); ++id) {
    const std::string_view bytes = tokenizer.token_bytes(id);
    if (bytes.size() != 1) continue;
    int32_t& found = ids[static_cast<unsigned char>(bytes.front())];
    if (found < 0 || tokenizer.is_byte_token(id)) found = id;
  }
  return ids;
}

// Bytes of characters and bytes that are none, in runs of any length, among other tokens and special ones. Some
// vocabularies lack bytes that no character has.
Ids random_bytes_among_ids(const Ids& bytes, const Tokenizer& tokenizer, std::mt19937& random) {
  const std::string_view kCharacters[] = {"\n", "A", "é", "日", "\xed\x9f\xbf", "🚀", "\xf4\x8f\xbf\xbf"};
  Ids ids;
  const auto push = [&](std::string_view text) {
    for (const char c : text) {
      const int32_t id = bytes[static_cast<unsigned char>(c)];
      if (id >= 0) ids.push_back(id);
    }
  };
  for (size_t n = random() % 30; n > 0; --n) {
    const std::string_view character = kCharacters[random() % std::size(kCharacters)];
    const uint32_t kind = random() % 16;
    if (kind < 8) {
      push(character);
    } else if (kind < 10) {  // its beginning, or its end
      const size_t cut = random() % character.size();
      push(kind == 8 ? character.substr(0, cut) : character.substr(cut));
    } else if (kind == 10) {
      for (size_t i = random() % (n == 3 ? 150 : 6); i > 0; --i) {
        const char byte = static_cast<char>(0x80 + random() % 0x80);
        push({&byte, 1});
      }
    } else if (kind == 11) {
      ids.push_back(static_cast<int32_t>(random() % 3));  // special
    } else {
      ids.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(tokenizer.vocab_size())));
    }
  }
  return ids;
}

// Whatever bytes a model writes: the deltas, the whole text and decode() agree.
void check_random_bytes(const std::shared_ptr<const Tokenizer>& tokenizer, int trials) {
  std::mt19937 random(9);
  const Ids bytes = byte_ids(*tokenizer);
  for (const char c : std::string_view("\nAé日🚀")) ASSERT_GE(bytes[static_cast<unsigned char>(c)], 0);
  for (int trial = 0; trial < trials; ++trial) {
    const TextStreamOptions options{.skip_special_tokens = trial % 2 == 0};
    const Ids ids = random_bytes_among_ids(bytes, *tokenizer, random);
    const std::string want = tokenizer->decode(ids, options.skip_special_tokens);
    ASSERT_EQ(stream_all(tokenizer, {}, ids, options, random), want);
    TextStream whole(tokenizer, {}, options);
    const std::string begin = whole.append(ids, 0);
    ASSERT_EQ(begin + whole.finish(-1), want);
    // After a prompt whose end no byte can change.
    const Ids prompt = tokenizer->encode("the engine", true);
    ASSERT_EQ(stream_all(tokenizer, prompt, ids, options, random),
              whole_text(*tokenizer, prompt, ids, options.skip_special_tokens));
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
    check_random_ids(tokenizer, 600);
    check_random_bytes(tokenizer, 4000);
  }
}

// Of a run of byte tokens what is valid is shown at once; from the first byte that is not, all is U+FFFD.
TEST(TextStreamTest, ARunOfByteTokensThatTurnsInvalid) {
  const auto tokenizer = Tokenizer::from_folder(data_path("spm"));
  const Ids bytes = byte_ids(*tokenizer), word = tokenizer->encode("the", false);
  const std::string u = "\ufffd";
  std::string many;
  for (int i = 0; i < 201; ++i) many += u;
  const std::pair<std::string, std::string> runs[] = {{"A\né", "A\né"},
                                                      {"A\xff", "A" + u},
                                                      {"é\xffé", "é" + u + u + u},
                                                      {"\xc3"
                                                       "A",
                                                       u + u},
                                                      {"é\xe2\x80", "é" + u + u},
                                                      {"\xed\xa0\x80", u + u + u},
                                                      {"\xf0\x9f\x9a", u + u + u},
                                                      {"\xe0\x80\x80\x80", u + u + u + u},
                                                      {"\xff" + std::string(200, 'A'), many}};
  for (const auto& [run, text] : runs) {
    Ids ids;
    for (const char c : run) ids.push_back(bytes[static_cast<unsigned char>(c)]);
    EXPECT_EQ(tokenizer->decode(ids, true), text);
    ids.insert(ids.end(), word.begin(), word.end());
    EXPECT_EQ(tokenizer->decode(ids, true), text + " the");
    TextStream stream(tokenizer, {}, {});
    std::string joined;
    for (const int32_t id : ids) joined += stream.append(std::span(&id, 1), 0);
    EXPECT_EQ(joined, text + " the");
  }
  TextStream stream(tokenizer, {}, {});
  EXPECT_EQ(stream.append(std::span(&bytes['\n'], 1), 0), "\n") << "a valid one does not wait";
}

// A prompt that ends in characters made of byte tokens, cut anywhere by the length of the context that is kept.
TEST(TextStreamTest, CharactersOfByteTokensGoOnAfterThoseOfThePrompt) {
  const auto tokenizer = Tokenizer::from_folder(data_path("spm"));
  const Ids bytes = byte_ids(*tokenizer);
  for (const std::string_view text : {"🚀🚀🚀", "ééééé", "日日日", "a日🚀é"}) {
    Ids prompt = tokenizer->encode("x", true), rocket;
    for (const char c : text) prompt.push_back(bytes[static_cast<unsigned char>(c)]);
    for (const char c : std::string_view("🚀")) rocket.push_back(bytes[static_cast<unsigned char>(c)]);
    TextStream stream(tokenizer, prompt, {});
    EXPECT_EQ(stream.append(rocket, 0) + stream.finish(-1), "🚀") << text;
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
    check_text_streams(tokenizer, 60);
    check_random_ids(tokenizer, 200);
    check_random_bytes(tokenizer, 200);
    check_stops(tokenizer, 100);
  }
}

TEST(TextStreamGoldenTest, WordPieceJoinsToTheWholeText) {
  const std::string models = folder_from_env("TOKENMILL_TEST_MODELS");
  if (models.empty()) GTEST_SKIP() << "not run: TOKENMILL_TEST_MODELS is unset";
  const auto tokenizer = Tokenizer::from_folder(models + "/minilm-l6-v2");
  check_text_streams(tokenizer, 60);
  check_random_ids(tokenizer, 200, true);
}

}  // namespace
}  // namespace tokenmill
