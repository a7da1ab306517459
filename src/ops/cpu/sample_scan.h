// Passes over one row of logits or weights, for sample.cc. AVX2 on every processor: one code path, one set of bits.
#pragma once

#include <cstdint>
#include <span>
#include <utility>

namespace tokenmill {

struct Peak {
  float value = 0;   // greatest value, NaN apart
  int32_t id = -1;   // lowest index that has it
  bool nan = false;  // some value is NaN
};
Peak find_peak(const float* values, int64_t n);

// log(sum exp(values)), given their greatest value, which is finite.
double log_sum_exp(const float* values, int64_t n, float peak);

// values[i] = exp((values[i] - peak) * inverse_temperature), and their sum.
double exponentiate(float* values, int64_t n, float peak, float inverse_temperature);

// The best.size() greatest values as (index, value), greatest first, ties by index. best.size() <= n.
void find_best(const float* values, int64_t n, std::span<std::pair<int32_t, float>> best);

}  // namespace tokenmill
