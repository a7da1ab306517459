// Colours, units and the progress bar: plain text wherever the stream is not a terminal.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

namespace tokenmill::cli {

enum class Style { kError, kBold, kDim };

bool is_terminal(std::FILE* stream);
// text in the style where the stream is a terminal and NO_COLOR is unset, else as it is.
std::string style(std::FILE* stream, std::string_view text, Style style);
std::string format_bytes(double bytes);       // "98.4 MB", powers of ten
std::string format_count(int64_t count);      // "134,515,008"
std::string format_duration(double seconds);  // "1:02:03", "0:12"

// One line on stderr, redrawn at most ten times a second; nothing at all where stderr is no terminal.
class ProgressBar {
 public:
  ProgressBar(int64_t total, bool wanted);
  ~ProgressBar();  // clears the line
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void update(int64_t done, int64_t generated_tokens);

 private:
  using Clock = std::chrono::steady_clock;
  int64_t total_;
  bool drawn_;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_draw_{};
};

}  // namespace tokenmill::cli
