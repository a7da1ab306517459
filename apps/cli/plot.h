// What an engine did over time, as an SVG: output throughput, batch size and cache hit rate, sampled from stats().
#pragma once

#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "tokenmill/engine.h"

namespace tokenmill::cli {

struct PlotSample {
  double seconds = 0;
  double tokens_per_s = 0;  // output tokens since the sample before
  double batch_size = 0;    // mean rows of the steps since the sample before
  double hit_rate = 0;      // since the start
};

// Samples on a thread of its own from construction to stop().
class PlotRecorder {
 public:
  explicit PlotRecorder(const Engine& engine, double interval_seconds = 0.1);
  ~PlotRecorder();  // stop()
  void stop();      // idempotent
  const std::vector<PlotSample>& samples() const { return samples_; }

 private:
  void run();
  void sample();

  const Engine& engine_;
  std::chrono::duration<double> interval_;
  std::chrono::steady_clock::time_point start_;
  std::map<std::string, double> before_;
  double before_seconds_ = 0;
  std::vector<PlotSample> samples_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  std::thread thread_;
};

std::string plot_svg(const std::string& title, const std::vector<PlotSample>& samples);

}  // namespace tokenmill::cli
