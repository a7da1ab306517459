#include "cli/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>

namespace tokenmill::cli {

bool is_terminal(std::FILE* stream) { return isatty(fileno(stream)) == 1; }

std::string style(std::FILE* stream, std::string_view text, Style style) {
  const char* no_color = std::getenv("NO_COLOR");
  if (!is_terminal(stream) || (no_color != nullptr && *no_color != '\0')) return std::string(text);
  const char* code = style == Style::kError ? "\033[31m" : style == Style::kBold ? "\033[1m" : "\033[2m";
  return code + std::string(text) + "\033[0m";
}

std::string format_bytes(double bytes) {
  static constexpr std::array kUnits = {"B", "kB", "MB", "GB", "TB"};
  size_t unit = 0;
  while (bytes >= 1000 && unit + 1 < kUnits.size()) {
    bytes /= 1000;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.1f %s", bytes, kUnits[unit]);
  return text;
}

std::string format_count(int64_t count) {
  std::string digits = std::to_string(count);
  const ptrdiff_t first = count < 0 ? 1 : 0;
  for (ptrdiff_t at = static_cast<ptrdiff_t>(digits.size()) - 3; at > first; at -= 3) {
    digits.insert(static_cast<size_t>(at), ",");
  }
  return digits;
}

std::string format_duration(double seconds) {
  const auto whole = static_cast<int64_t>(std::max(0.0, seconds) + 0.5);
  char text[48];
  if (whole >= 3600) {
    std::snprintf(text, sizeof text, "%lld:%02lld:%02lld", static_cast<long long>(whole / 3600),
                  static_cast<long long>(whole / 60 % 60), static_cast<long long>(whole % 60));
  } else {
    std::snprintf(text, sizeof text, "%lld:%02lld", static_cast<long long>(whole / 60),
                  static_cast<long long>(whole % 60));
  }
  return text;
}

ProgressBar::ProgressBar(int64_t total, bool wanted) : total_(total), drawn_(wanted && is_terminal(stderr)) {}

ProgressBar::~ProgressBar() {
  if (drawn_) std::fputs("\r\033[K", stderr);
}

void ProgressBar::update(int64_t done, int64_t generated_tokens) {
  if (!drawn_) return;
  const Clock::time_point now = Clock::now();
  if (done < total_ && now - last_draw_ < std::chrono::milliseconds(100)) return;
  last_draw_ = now;
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  const double share = total_ > 0 ? static_cast<double>(done) / static_cast<double>(total_) : 1;
  const std::string eta = done > 0 ? format_duration(elapsed * (1 - share) / share) : std::string("-:--");
  winsize size{};
  const int columns = ioctl(fileno(stderr), TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
  const int width = std::clamp(columns - 52, 0, 40);
  const int filled = static_cast<int>(share * width);
  // The cursor goes back to the line's start, so a log line overwrites the bar and the bar comes back below it.
  std::fprintf(stderr, "\r\033[K%3.0f%% [%s%s] %s/%s  %.1f tok/s  ETA %s\r", share * 100,
               std::string(static_cast<size_t>(filled), '#').c_str(),
               std::string(static_cast<size_t>(width - filled), '.').c_str(), format_count(done).c_str(),
               format_count(total_).c_str(), elapsed > 0 ? static_cast<double>(generated_tokens) / elapsed : 0.0,
               eta.c_str());
  std::fflush(stderr);
}

}  // namespace tokenmill::cli
