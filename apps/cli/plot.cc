#include "cli/plot.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>

namespace tokenmill::cli {
namespace {

constexpr double kWidth = 900, kPanel = 170, kLeft = 70, kTop = 40, kGap = 38;

std::string format(const char* pattern, double a, double b = 0, double c = 0, double d = 0) {
  char text[160];
  std::snprintf(text, sizeof text, pattern, a, b, c, d);
  return text;
}

// The next of 1, 2, 5 times a power of ten.
double round_up(double value) {
  if (value <= 0) return 1;
  const double power = std::pow(10, std::floor(std::log10(value)));
  for (const double step : {1.0, 2.0, 5.0}) {
    if (value <= step * power) return step * power;
  }
  return 10 * power;
}

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '<') {
      out += "&lt;";
    } else if (c == '&') {
      out += "&amp;";
    } else {
      out += c;
    }
  }
  return out;
}

std::string panel(const char* name, const char* color, double top, double seconds, double most,
                  const std::vector<PlotSample>& samples, const std::function<double(const PlotSample&)>& value) {
  const double right = kWidth - 20, bottom = top + kPanel - kGap;
  const auto x = [&](double t) { return kLeft + (right - kLeft) * t / seconds; };
  const auto y = [&](double v) { return bottom - (bottom - top) * std::clamp(v / most, 0.0, 1.0); };
  std::string svg = format("<text x=\"%.0f\" y=\"%.1f\" class=\"name\">", kLeft, top - 6) + name + "</text>\n";
  for (int line = 0; line <= 2; ++line) {
    const double v = most * line / 2;
    svg += format("<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" class=\"grid\"/>\n", kLeft, right, y(v), y(v));
    svg += format("<text x=\"%.1f\" y=\"%.1f\" class=\"tick\" text-anchor=\"end\">%g</text>\n", kLeft - 6, y(v) + 4, v);
  }
  std::string points;
  for (const PlotSample& sample : samples) points += format("%.1f,%.1f ", x(sample.seconds), y(value(sample)));
  return svg + "<polyline points=\"" + points + "\" fill=\"none\" stroke-width=\"1.5\" stroke=\"" + color + "\"/>\n";
}

}  // namespace

PlotRecorder::PlotRecorder(const Engine& engine, double interval_seconds)
    : engine_(engine),
      interval_(interval_seconds),
      start_(std::chrono::steady_clock::now()),
      before_(engine.stats()),
      thread_([this] { run(); }) {}

PlotRecorder::~PlotRecorder() { stop(); }

void PlotRecorder::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void PlotRecorder::run() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    wake_.wait_for(lock, interval_, [&] { return stopping_; });
    sample();
  }
}

void PlotRecorder::sample() {
  std::map<std::string, double> now = engine_.stats();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  const auto change = [&](const char* key) { return now.at(key) - before_.at(key); };
  const double steps = change("batch_size_count");
  samples_.push_back({.seconds = seconds,
                      .tokens_per_s = change("generated_tokens") / std::max(1e-6, seconds - before_seconds_),
                      .batch_size = steps > 0 ? change("batch_size_sum") / steps : 0,
                      .hit_rate = 100 * now.at("cache_hit_rate")});
  before_ = std::move(now);
  before_seconds_ = seconds;
}

std::string plot_svg(const std::string& title, const std::vector<PlotSample>& samples) {
  double seconds = 0.1, throughput = 0, batch = 0;
  for (const PlotSample& sample : samples) {
    seconds = std::max(seconds, sample.seconds);
    throughput = std::max(throughput, sample.tokens_per_s);
    batch = std::max(batch, sample.batch_size);
  }
  const double height = kTop + 3 * kPanel + 10;
  std::string svg = format("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\">\n", kWidth, height) +
                    "<style>text{font:12px sans-serif;fill:#333}.name{font-weight:bold}.grid{stroke:#ddd}"
                    ".tick{font-size:10px}</style>\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n" +
                    format("<text x=\"%.0f\" y=\"16\">", kLeft) + escaped(title) + "</text>\n";
  svg += panel("output tokens a second", "#1f77b4", kTop, seconds, round_up(throughput), samples,
               [](const PlotSample& sample) { return sample.tokens_per_s; });
  svg += panel("batch size", "#2ca02c", kTop + kPanel, seconds, round_up(batch), samples,
               [](const PlotSample& sample) { return sample.batch_size; });
  svg += panel("cache hit rate, %", "#d62728", kTop + 2 * kPanel, seconds, 100, samples,
               [](const PlotSample& sample) { return sample.hit_rate; });
  for (int tick = 0; tick <= 5; ++tick) {
    const double t = seconds * tick / 5;
    svg += format("<text x=\"%.1f\" y=\"%.1f\" class=\"tick\" text-anchor=\"middle\">%.3g s</text>\n",
                  kLeft + (kWidth - 20 - kLeft) * tick / 5, height - 18, t);
  }
  return svg + "</svg>\n";
}

}  // namespace tokenmill::cli
