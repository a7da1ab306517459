#include "ops/cpu/sample_scan.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/cpu/vector_math.h"

namespace tokenmill {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Eight chains of doubles, folded by halves.
struct Sum8 {
  __m256d low, high;
};
TM_TARGET_AVX2 inline void add(Sum8& sum, __m256 values) {
  sum.low = _mm256_add_pd(sum.low, _mm256_cvtps_pd(_mm256_castps256_ps128(values)));
  sum.high = _mm256_add_pd(sum.high, _mm256_cvtps_pd(_mm256_extractf128_ps(values, 1)));
}
TM_TARGET_AVX2 inline double fold(const Sum8& sum) {
  const __m256d by4 = _mm256_add_pd(sum.low, sum.high);
  const __m128d by2 = _mm_add_pd(_mm256_castpd256_pd128(by4), _mm256_extractf128_pd(by4, 1));
  return _mm_cvtsd_f64(by2) + _mm_cvtsd_f64(_mm_unpackhi_pd(by2, by2));
}

// The last n % 8 values, filled up with -inf.
TM_TARGET_AVX2 inline __m256 load_tail(const float* values, int64_t count) {
  alignas(32) float padded[8];
  std::fill(padded, padded + 8, kMinusInfinity);
  std::copy(values, values + count, padded);
  return _mm256_load_ps(padded);
}

// (value, index) order of find_best: a is better than b.
bool better(const std::pair<int32_t, float>& a, const std::pair<int32_t, float>& b) {
  return a.second > b.second || (a.second == b.second && a.first < b.first);
}

}  // namespace

TM_TARGET_AVX2 Peak find_peak(const float* values, int64_t n) {
  constexpr int kStreams = 4;  // independent comparisons hide the latency
  __m256 best[kStreams], nan = _mm256_setzero_ps();
  __m256i best_index[kStreams];
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  for (int s = 0; s < kStreams; ++s) {
    best[s] = _mm256_set1_ps(kMinusInfinity);
    best_index[s] = _mm256_set1_epi32(std::numeric_limits<int32_t>::max());
  }
  const auto step = [&](int s, __m256 value, int64_t begin) TM_TARGET_AVX2 {
    const __m256 greater = _mm256_cmp_ps(value, best[s], _CMP_GT_OQ);
    nan = _mm256_or_ps(nan, _mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    best[s] = _mm256_blendv_ps(best[s], value, greater);
    const __m256i index = _mm256_add_epi32(lanes, _mm256_set1_epi32(static_cast<int32_t>(begin)));
    best_index[s] = _mm256_blendv_epi8(best_index[s], index, _mm256_castps_si256(greater));
  };
  int64_t i = 0;
  for (; i + 8 * kStreams <= n; i += 8 * kStreams) {
    for (int s = 0; s < kStreams; ++s) step(s, _mm256_loadu_ps(values + i + 8 * s), i + 8 * s);
  }
  for (; i < n; i += 8) step(0, n - i >= 8 ? _mm256_loadu_ps(values + i) : load_tail(values + i, n - i), i);

  Peak peak = {kMinusInfinity, -1, _mm256_movemask_ps(nan) != 0};
  for (int s = 0; s < kStreams; ++s) {
    alignas(32) float lane_values[8];
    alignas(32) int32_t lane_ids[8];
    _mm256_store_ps(lane_values, best[s]);
    _mm256_store_si256(reinterpret_cast<__m256i*>(lane_ids), best_index[s]);
    for (int lane = 0; lane < 8; ++lane) {
      const bool wins = lane_values[lane] > peak.value ||
                        (lane_values[lane] == peak.value && peak.id >= 0 && lane_ids[lane] < peak.id);
      if (wins) peak = {lane_values[lane], lane_ids[lane], peak.nan};
    }
  }
  return peak;
}

TM_TARGET_AVX2 double log_sum_exp(const float* values, int64_t n, float peak) {
  const __m256 peaks = _mm256_set1_ps(peak);
  Sum8 sum = {_mm256_setzero_pd(), _mm256_setzero_pd()};
  for (int64_t i = 0; i < n; i += 8) {
    const __m256 value = n - i >= 8 ? _mm256_loadu_ps(values + i) : load_tail(values + i, n - i);
    add(sum, vector_math::exp(_mm256_sub_ps(value, peaks)));
  }
  return static_cast<double>(peak) + std::log(fold(sum));
}

TM_TARGET_AVX2 double exponentiate(float* values, int64_t n, float peak, float inverse_temperature) {
  const __m256 peaks = _mm256_set1_ps(peak), factor = _mm256_set1_ps(inverse_temperature);
  Sum8 sum = {_mm256_setzero_pd(), _mm256_setzero_pd()};
  for (int64_t i = 0; i < n; i += 8) {
    const bool whole = n - i >= 8;
    const __m256 value = whole ? _mm256_loadu_ps(values + i) : load_tail(values + i, n - i);
    const __m256 weight = vector_math::exp(_mm256_mul_ps(_mm256_sub_ps(value, peaks), factor));
    add(sum, weight);
    if (whole) {
      _mm256_storeu_ps(values + i, weight);
    } else {
      alignas(32) float tail[8];
      _mm256_store_ps(tail, weight);
      std::copy(tail, tail + (n - i), values + i);
    }
  }
  return fold(sum);
}

TM_TARGET_AVX2 void find_best(const float* values, int64_t n, std::span<std::pair<int32_t, float>> best) {
  const int64_t count = static_cast<int64_t>(best.size());
  if (count == 0) return;
  // A heap with the worst on top; indices come in ascending order, so only a strictly greater value can replace it.
  for (int64_t i = 0; i < count; ++i) best[static_cast<size_t>(i)] = {static_cast<int32_t>(i), values[i]};
  std::make_heap(best.begin(), best.end(), better);
  const auto offer = [&](int64_t i) {
    if (!(values[i] > best.front().second)) return;
    std::pop_heap(best.begin(), best.end(), better);
    best.back() = {static_cast<int32_t>(i), values[i]};
    std::push_heap(best.begin(), best.end(), better);
  };
  int64_t i = count;
  for (; i + 8 <= n; i += 8) {
    const __m256 greater = _mm256_cmp_ps(_mm256_loadu_ps(values + i), _mm256_set1_ps(best.front().second), _CMP_GT_OQ);
    if (_mm256_movemask_ps(greater) == 0) continue;
    for (int64_t j = i; j < i + 8; ++j) offer(j);
  }
  for (; i < n; ++i) offer(i);
  std::sort_heap(best.begin(), best.end(), better);
}

TM_TARGET_AVX2 double kept_mass(const float* weights, int64_t begin, int64_t end, const Cut& cut) {
  const __m256 border = _mm256_set1_ps(cut.weight);
  const __m256i after_last = _mm256_set1_epi32(cut.last_id);
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  Sum8 sum = {_mm256_setzero_pd(), _mm256_setzero_pd()};
  for (int64_t i = begin; i < end; i += 8) {
    const __m256 weight = end - i >= 8 ? _mm256_loadu_ps(weights + i) : load_tail(weights + i, end - i);
    const __m256 above = _mm256_cmp_ps(weight, border, _CMP_GT_OQ), equal = _mm256_cmp_ps(weight, border, _CMP_EQ_OQ);
    if (_mm256_movemask_ps(_mm256_or_ps(above, equal)) == 0) continue;
    const __m256i ids = _mm256_add_epi32(lanes, _mm256_set1_epi32(static_cast<int32_t>(i)));
    const __m256 late = _mm256_castsi256_ps(_mm256_cmpgt_epi32(ids, after_last));
    const __m256 kept = _mm256_or_ps(above, _mm256_andnot_ps(late, equal));
    add(sum, _mm256_and_ps(weight, kept));
  }
  return fold(sum);
}

TM_TARGET_AVX2 int64_t next_group(const float* weights, int64_t n, int64_t begin, float low) {
  const __m256 lowest = _mm256_set1_ps(low);
  int64_t i = begin;
  for (; i + 8 <= n; i += 8) {
    if (_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(weights + i), lowest, _CMP_GE_OQ)) != 0) return i;
  }
  for (int64_t id = i; id < n; ++id) {
    if (weights[id] >= low) return i;
  }
  return n;
}

}  // namespace tokenmill
