// Stop strings and regexes in a growing text, against naive searches over the whole text.

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <random>

#include "text/stop_matcher.h"
#include "tokenmill/error.h"

namespace tokenmill {
namespace {

std::shared_ptr<const StopPatterns> patterns(std::vector<std::string> strings, std::vector<std::string> regexes = {}) {
  return std::make_shared<const StopPatterns>(strings, regexes);
}

// The match that ends first, of those at one end the longest.
std::optional<StopMatch> naive_find(const std::string& text, const std::vector<std::string>& strings) {
  std::optional<StopMatch> best;
  for (const std::string& stop : strings) {
    const size_t at = text.find(stop);
    if (at == std::string::npos) continue;
    const auto begin = static_cast<int64_t>(at), end = static_cast<int64_t>(at + stop.size());
    if (!best || end < best->end || (end == best->end && begin < best->begin)) best = StopMatch{begin, end, stop};
  }
  return best;
}

int64_t naive_held(const std::string& text, const std::vector<std::string>& strings) {
  size_t held = 0;
  for (const std::string& stop : strings) {
    for (size_t n = 1; n < stop.size() && n <= text.size(); ++n) {
      if (text.ends_with(stop.substr(0, n))) held = std::max(held, n);
    }
  }
  return static_cast<int64_t>(held);
}

TEST(StopMatcherTest, AgreesWithNaiveSearch) {
  std::mt19937 random(5);
  const std::vector<std::string> letters = {"a", "b", "é", "日", "\xe6", "\x97", "🍕"};
  const auto draw = [&](size_t count_max) {
    std::string text;
    for (size_t n = 1 + random() % count_max; n > 0; --n) text += letters[random() % letters.size()];
    return text;
  };
  int matched = 0;
  for (int trial = 0; trial < 5000; ++trial) {
    std::vector<std::string> stops;
    for (size_t n = 1 + random() % 4; n > 0; --n) stops.push_back(draw(5));
    StopMatcher matcher(patterns(stops));
    std::string text;
    for (int step = 0; step < 15; ++step) {
      std::string token = random() % 8 == 0 ? "" : draw(4);
      if (!token.empty() && random() % 3 == 0) token.pop_back();  // tokens end inside characters
      text += token;
      const auto got = matcher.append(token);
      const auto want = naive_find(text, stops);
      ASSERT_EQ(got.has_value(), want.has_value());
      ASSERT_EQ(matcher.total_bytes(), static_cast<int64_t>(text.size()));
      if (got) {
        ASSERT_EQ(got->begin, want->begin);
        ASSERT_EQ(got->end, want->end);
        ASSERT_EQ(got->matched, want->matched);
        ++matched;
        break;
      }
      ASSERT_EQ(matcher.held_bytes(), naive_held(text, stops));
    }
  }
  EXPECT_GT(matched, 500);
}

TEST(StopMatcherTest, SharedPatternsServeManyMatchers) {
  const auto shared = patterns({"stop"}, {"x+y"});
  StopMatcher a(shared), b(shared);
  EXPECT_FALSE(a.append("sto"));
  EXPECT_FALSE(b.append("p"));
  EXPECT_EQ(a.held_bytes(), 3);
  EXPECT_EQ(b.held_bytes(), 0);
  StopMatcher moved(std::move(a));
  EXPECT_TRUE(moved.append("p!"));
}

struct RegexCase {
  std::string pattern;
  std::vector<std::string> tokens;
  int64_t token = -1, begin = 0, end = 0;  // the token that completes the match; -1: none
};

TEST(StopMatcherTest, RegexesMatchAcrossTokens) {
  const std::vector<RegexCase> cases = {{"\\d{3}", {"a1", "2b", "34", "5"}, 3, 4, 7},
                                        {"[日本]語", {"x日", "\xe8\xaa", "\x9e!"}, 2, 1, 7},
                                        {"a.*b", {"ca", "--", "b", "b"}, 2, 1, 5},
                                        {"a.*b", {"ca\n", "b"}, -1, 0, 0},
                                        {"foo\\b", {"foo", "l", " foo", "."}, 3, 5, 8},
                                        {"^ab", {"cab", "ab"}, -1, 0, 0},
                                        {"(?m)^ab", {"c\n", "ab"}, 1, 2, 4},
                                        {"(?m)end$", {"end", "!\nend", "\n"}, 2, 5, 8},
                                        {"(?i)STOP|halt", {"st", "Op"}, 1, 0, 4},
                                        {"\\n\\n\\n+", {"a\n", "\nb\n\n", "\n"}, 2, 4, 7},
                                        {"a|ba", {"b", "a"}, 1, 0, 2}};
  for (const RegexCase& test : cases) {
    StopMatcher matcher(patterns({}, {test.pattern}));
    int64_t found_at = -1;
    std::string text;
    for (size_t i = 0; i < test.tokens.size() && found_at < 0; ++i) {
      const int64_t shown_before = matcher.total_bytes() - matcher.held_bytes();
      text += test.tokens[i];
      const auto match = matcher.append(test.tokens[i]);
      if (!match) continue;
      found_at = static_cast<int64_t>(i);
      EXPECT_EQ(match->begin, test.begin) << test.pattern;
      EXPECT_EQ(match->end, test.end) << test.pattern;
      EXPECT_EQ(match->matched,
                text.substr(static_cast<size_t>(test.begin), static_cast<size_t>(test.end - test.begin)));
      EXPECT_GE(match->begin, shown_before) << test.pattern << ": text that was shown is removed";
    }
    EXPECT_EQ(found_at, test.token) << test.pattern;
  }
}

TEST(StopMatcherTest, HeldBytesOfARegexAreItsLiveCandidate) {
  StopMatcher matcher(patterns({}, {"ab+c"}));
  matcher.append("xxab");
  EXPECT_EQ(matcher.held_bytes(), 2);
  matcher.append("bbb");
  EXPECT_EQ(matcher.held_bytes(), 5);
  matcher.append("d");
  EXPECT_EQ(matcher.held_bytes(), 0);
}

TEST(StopMatcherTest, UnboundedRegexHoldsABoundedTail) {
  StopMatcher matcher(patterns({}, {"a[^\n]*b"}));
  matcher.append("a");
  for (int i = 0; i < 3000; ++i) ASSERT_FALSE(matcher.append("éx"));
  EXPECT_EQ(matcher.held_bytes(), kRegexHeldBytesMax);
  const int64_t shown = matcher.total_bytes() - matcher.held_bytes();
  const auto match = matcher.append("b");
  ASSERT_TRUE(match);
  EXPECT_EQ(match->end, matcher.total_bytes());
  EXPECT_GE(match->begin, shown);
  EXPECT_EQ(static_cast<int64_t>(match->matched.size()), match->end - match->begin);
}

TEST(StopMatcherTest, CostPerByteIsBoundedForHostilePatterns) {
  StopMatcher matcher(patterns({}, {"(a|aa|a*b?a)*[^a]c{50}", "(x+x+)+y"}));
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < 20000; ++i) matcher.append("ax");
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

TEST(StopMatcherTest, BadPatternsAreNamed) {
  for (const std::string pattern : {"(", "a*", "^", "x$", "a{1000000}", "(?=a)b", "\\b", "(a)\\1"}) {
    try {
      patterns({}, {pattern});
      ADD_FAILURE() << pattern << " was taken";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kValue);
      EXPECT_NE(std::string(error.what()).find("got '" + pattern + "'"), std::string::npos) << error.what();
    }
  }
  EXPECT_THROW(patterns({""}), Error);
  EXPECT_TRUE(patterns({})->empty());
  EXPECT_FALSE(patterns({}, {"a"})->empty());
}

}  // namespace
}  // namespace tokenmill
