// A download as its user sees it: a bar on a terminal, else a log line now and then.
#pragma once

#include <chrono>
#include <string>

#include "checkpoint/hub/hub_download.h"

namespace tokenmill {

class HubProgressView {
 public:
  HubProgressView(bool wants_bar, HubLog log);
  ~HubProgressView();  // clears the bar
  HubProgressView(const HubProgressView&) = delete;
  HubProgressView& operator=(const HubProgressView&) = delete;

  void show(const DownloadProgress& progress);

 private:
  using Clock = std::chrono::steady_clock;
  std::string text(const DownloadProgress& progress, Clock::time_point now) const;

  bool bar_, drawn_ = false;
  HubLog log_;
  Clock::time_point start_ = Clock::now(), last_ = start_;
  int64_t bytes_before_ = -1;  // there at the start, which the rate leaves out
};

// "1.23 GB", powers of ten.
std::string bytes_text(int64_t bytes);

}  // namespace tokenmill
