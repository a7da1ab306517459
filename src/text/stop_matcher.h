// Finds stop strings and stop regexes in the bytes of a growing output, on the engine thread.
//
// Matching is on bytes, with special tokens spelt out; a match may span any number of tokens and begin in the middle of
// one. The earliest-ending match wins; of those that end at one byte, the longest.
//
// A regex is Rust's syntax (no look-around, no back-references); \b knows ASCII words; it may not match the empty text
// nor use the end of the text. Where a match may grow without bound, the last kRegexHeldBytesMax bytes are held: a
// longer match still stops the output, but counts as beginning that many bytes before its end, as what came before is
// shown.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tokenmill {

inline constexpr int64_t kRegexHeldBytesMax = 4096;

// Compiled once a request, shared by its samples, immutable.
class StopPatterns {
 public:
  // Throws Error(kValue) naming the pattern that does not compile.
  StopPatterns(const std::vector<std::string>& strings, const std::vector<std::string>& regexes);
  ~StopPatterns();
  bool empty() const;
  struct Impl;
  const Impl& impl() const { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

struct StopMatch {
  int64_t begin = 0, end = 0;  // bytes of the output text so far (special tokens spelt out)
  std::string matched;         // the stop string, or the text a regex matched
};

class StopMatcher {
 public:
  explicit StopMatcher(std::shared_ptr<const StopPatterns> patterns);
  ~StopMatcher();
  StopMatcher(StopMatcher&&) noexcept;

  // Appends one token's bytes; returns the match that this token completes.
  std::optional<StopMatch> append(std::string_view bytes);
  // Bytes at the end of the text so far that may still become part of a match: they must not be shown yet.
  // After a match it no longer counts the match itself: TextStream::finish cuts there, so hold all until then.
  int64_t held_bytes() const;
  int64_t total_bytes() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tokenmill
