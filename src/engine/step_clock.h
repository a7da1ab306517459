// Where a step's time goes, and whether one has run for too long (the watchdog).
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

namespace tokenmill {

class StepClock {
 public:
  // On a device kForward launches the step and kSample waits for it, or with overlap for the one before it. Without
  // overlap the device idles in all the others.
  enum Part { kAdmit, kSchedule, kForward, kSample, kCommit, kPublish, kNumParts };
  static constexpr const char* kPartNames[kNumParts] = {"admit", "schedule", "forward", "sample", "commit", "publish"};

  // Engine thread.
  void begin_step();
  void end_part(Part part);  // the time since the last mark goes to `part`
  void end_step(bool counts);
  // Of the step that runs or ran last, nanoseconds of the steady clock.
  int64_t step_begin_ns() const { return begin_ns_; }
  int64_t mark_ns() const { return mark_ns_; }  // the last mark
  int64_t part_ns(Part part) const { return step_ns_[part]; }
  // "Step time (mean of 40): admit 0.01 ms, …" each time `interval` steps were counted, else nothing.
  std::optional<std::string> report(int64_t interval);

  // Any thread: seconds the step that now runs has taken, told once a step when above `limit_seconds`.
  std::optional<double> overdue(double limit_seconds);

 private:
  using Clock = std::chrono::steady_clock;
  static int64_t now_ns() { return Clock::now().time_since_epoch().count(); }

  std::atomic<int64_t> step_began_ns_{0};  // 0: no step runs
  std::atomic<int64_t> warned_ns_{0};      // the step_began_ns_ that was told
  int64_t begin_ns_ = 0, mark_ns_ = 0;
  int64_t steps_ = 0;
  std::array<int64_t, kNumParts> spent_ns_{};
  std::array<int64_t, kNumParts> step_ns_{};
};

}  // namespace tokenmill
