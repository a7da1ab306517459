// Which share of their max_new_tokens running sequences are expected to use: admission reserves that much. It falls
// with every decode step while memory holds out, and is set anew from what was really decoded when it does not.
#pragma once

#include <algorithm>
#include <cstdint>

namespace tokenmill {

class NewTokenRatio {
 public:
  explicit NewTokenRatio(double conservativeness)
      : initial_(std::min(0.7 * conservativeness, 1.0)), minimum_(initial_ * 0.14), value_(initial_) {}
  double value() const { return value_; }
  void reset() { value_ = initial_; }
  void decode_step() { value_ = std::max(minimum_, value_ - (initial_ - minimum_) / 600); }
  void set_after_retraction(int64_t decoded, int64_t batch, int64_t max_new_tokens) {
    value_ = std::min(1.0, static_cast<double>(decoded + 20 * batch) / static_cast<double>(max_new_tokens + 1));
  }

 private:
  double initial_, minimum_, value_;
};

}  // namespace tokenmill
