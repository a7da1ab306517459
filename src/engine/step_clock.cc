#include "engine/step_clock.h"

#include <fmt/format.h>

namespace tokenmill {

void StepClock::begin_step() {
  begin_ns_ = mark_ns_ = now_ns();
  step_ns_ = {};
  step_began_ns_ = mark_ns_;
}

void StepClock::end_part(Part part) {
  const int64_t now = now_ns();
  step_ns_[part] += now - mark_ns_;
  mark_ns_ = now;
}

void StepClock::end_step(bool counts) {
  step_began_ns_ = 0;
  if (!counts) return;
  ++steps_;
  for (int part = 0; part < kNumParts; ++part) spent_ns_[part] += step_ns_[part];
}

std::optional<std::string> StepClock::report(int64_t interval) {
  if (steps_ < interval) return std::nullopt;
  std::string text = fmt::format("Step time (mean of {}): ", steps_);
  for (int part = 0; part < kNumParts; ++part) {
    const double mean_ms = static_cast<double>(spent_ns_[part]) / 1e6 / static_cast<double>(steps_);
    text += fmt::format("{}{} {:.3f} ms", part == 0 ? "" : ", ", kPartNames[part], mean_ms);
  }
  steps_ = 0;
  spent_ns_ = {};
  return text;
}

std::optional<double> StepClock::overdue(double limit_seconds) {
  const int64_t began = step_began_ns_;
  if (began == 0 || began == warned_ns_) return std::nullopt;
  const double seconds = static_cast<double>(now_ns() - began) / 1e9;
  if (seconds <= limit_seconds) return std::nullopt;
  warned_ns_ = began;
  return seconds;
}

}  // namespace tokenmill
