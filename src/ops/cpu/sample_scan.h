// Passes over one row of logits or weights, for sample.cc. AVX2 on every processor: one code path, one set of bits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
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

// A prefix of the ranking (weight descending, id ascending): all weights above `weight`, and those equal to it with an
// id up to `last_id`. Zero weights are never in it.
struct Cut {
  float weight = std::numeric_limits<float>::min();
  int32_t last_id = std::numeric_limits<int32_t>::max();
  bool keeps(float w, int64_t id) const { return w > weight || (w == weight && id <= last_id); }
};

// The sum of the weights in [begin, end) that the cut keeps. begin is a multiple of 8.
double kept_mass(const float* weights, int64_t begin, int64_t end, const Cut& cut);

// Calls visit(id, weight) in id order for every weight in [low, high); few of many are expected to be.
template <class Visit>
void visit_between(const float* weights, int64_t n, float low, float high, Visit visit);

// The first multiple of 8 from `begin` on whose eight weights hold one that is at least `low`; n where there is none.
int64_t next_group(const float* weights, int64_t n, int64_t begin, float low);

template <class Visit>
void visit_between(const float* weights, int64_t n, float low, float high, Visit visit) {
  for (int64_t group = next_group(weights, n, 0, low); group < n; group = next_group(weights, n, group + 8, low)) {
    for (int64_t id = group; id < std::min(n, group + 8); ++id) {
      if (weights[id] >= low && weights[id] < high) visit(id, weights[id]);
    }
  }
}

}  // namespace tokenmill
