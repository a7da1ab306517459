#include "checkpoint/hub/hub_progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <utility>

namespace tokenmill {
namespace {

constexpr std::chrono::seconds kLogPeriod(10);
constexpr int kBarColumnsMax = 40;
constexpr int kTextColumns = 64;  // of the line around the bar

}  // namespace

std::string bytes_text(int64_t bytes) {
  static constexpr std::array kUnits = {"B", "kB", "MB", "GB", "TB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 1000 && unit + 1 < kUnits.size(); ++unit) value /= 1000;
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.2f %s", value, kUnits[unit]);
  return text;
}

HubProgressView::HubProgressView(bool wants_bar, HubLog log)
    : bar_(wants_bar && ::isatty(STDERR_FILENO) == 1), log_(std::move(log)) {}

HubProgressView::~HubProgressView() {
  if (drawn_) std::fputs("\r\033[K", stderr);
}

// "45% 1.20 GB/2.65 GB 35.10 MB/s ETA 0:41"
std::string HubProgressView::text(const DownloadProgress& progress, Clock::time_point now) const {
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  const auto came = static_cast<double>(progress.bytes_done - bytes_before_);
  const double rate = elapsed > 0 ? came / elapsed : 0;
  const double left = static_cast<double>(progress.bytes_total - progress.bytes_done);
  const auto eta = static_cast<long>(rate > 0 ? left / rate : 0);
  char text[160];
  std::snprintf(text, sizeof text, "%s/%s %s/s ETA %ld:%02ld", bytes_text(progress.bytes_done).c_str(),
                bytes_text(progress.bytes_total).c_str(), bytes_text(static_cast<int64_t>(rate)).c_str(), eta / 60,
                eta % 60);
  return text;
}

void HubProgressView::show(const DownloadProgress& progress) {
  const auto now = Clock::now();
  if (bytes_before_ < 0) bytes_before_ = progress.bytes_done;
  const double share = progress.bytes_total > 0
                           ? static_cast<double>(progress.bytes_done) / static_cast<double>(progress.bytes_total)
                           : 1;
  if (!bar_) {
    if (!log_ || now - last_ < kLogPeriod) return;
    last_ = now;
    log_("Downloading " + progress.repo + ": " + std::to_string(static_cast<int>(share * 100)) + "% " +
         text(progress, now));
    return;
  }
  winsize size{};
  const int columns = ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
  const int name = static_cast<int>(std::min<size_t>(progress.repo.size(), 40));
  const int width = std::clamp(columns - kTextColumns - name, 0, kBarColumnsMax);
  const int filled = static_cast<int>(share * width);
  drawn_ = true;
  std::fprintf(stderr, "\r\033[K%.*s %3.0f%% [%s%s] %s\r", name, progress.repo.c_str(), share * 100,
               std::string(static_cast<size_t>(filled), '#').c_str(),
               std::string(static_cast<size_t>(width - filled), '.').c_str(), text(progress, now).c_str());
  std::fflush(stderr);
}

}  // namespace tokenmill
