#include "ops/cpu/norm.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "ops/cpu/cpu_backend.h"

namespace tokenmill {
namespace {

constexpr int64_t kRowsPerPiece = 4;

struct SquareSums {
  __m256d chains[4];  // chains 0-3, 4-7, 8-11, 12-15
};

__attribute__((target("avx2,fma"))) inline void add_squares(const float* values, SquareSums& sums) {
  for (int part = 0; part < 4; ++part) {
    const __m256d value = _mm256_cvtps_pd(_mm_loadu_ps(values + 4 * part));
    sums.chains[part] = _mm256_fmadd_pd(value, value, sums.chains[part]);
  }
}

// sum += (row * scale) * weight
__attribute__((target("avx2,fma"))) void add_norm(const float* row, float scale, const float* weight, int64_t n,
                                                  float* sum) {
  const __m256 scales = _mm256_set1_ps(scale);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 y = _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(row + i), scales), _mm256_loadu_ps(weight + i));
    _mm256_storeu_ps(sum + i, _mm256_add_ps(_mm256_loadu_ps(sum + i), y));
  }
  for (; i < n; ++i) sum[i] += row[i] * scale * weight[i];
}

}  // namespace

// AVX2 on every processor: a norm is bound by its loads, and one code path has one set of bits.
__attribute__((target("avx2,fma"))) float rms_scale(const float* row, int64_t n, float eps) {
  SquareSums sums = {{_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()}};
  const int64_t whole = n / 16 * 16;
  for (int64_t i = 0; i < whole; i += 16) add_squares(row + i, sums);
  if (whole < n) {
    float tail[16] = {};
    std::copy(row + whole, row + n, tail);
    add_squares(tail, sums);
  }
  const __m256d by8_low = _mm256_add_pd(sums.chains[0], sums.chains[2]);
  const __m256d by8_high = _mm256_add_pd(sums.chains[1], sums.chains[3]);
  const __m256d by4 = _mm256_add_pd(by8_low, by8_high);
  const __m128d by2 = _mm_add_pd(_mm256_castpd256_pd128(by4), _mm256_extractf128_pd(by4, 1));
  const double sum = _mm_cvtsd_f64(by2) + _mm_cvtsd_f64(_mm_unpackhi_pd(by2, by2));
  return static_cast<float>(1.0 / std::sqrt(sum / static_cast<double>(n) + static_cast<double>(eps)));
}

__attribute__((target("avx2,fma"))) void apply_norm(const float* row, float scale, const float* weight, int64_t n,
                                                    float* out) {
  const __m256 scales = _mm256_set1_ps(scale);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(row + i), scales);
    _mm256_storeu_ps(out + i, _mm256_mul_ps(scaled, _mm256_loadu_ps(weight + i)));
  }
  for (; i < n; ++i) out[i] = row[i] * scale * weight[i];
}

void CpuBackend::rms_norm(Matrix x, const Norm& norm, Matrix out) {
  TM_CHECK(x.rows == out.rows && x.cols == out.cols && x.dtype == DType::kF32 && out.dtype == DType::kF32);
  pool_.parallel_for((x.rows + kRowsPerPiece - 1) / kRowsPerPiece, [&](int64_t piece, int) {
    for (int64_t i = piece * kRowsPerPiece; i < std::min(x.rows, (piece + 1) * kRowsPerPiece); ++i) {
      const float* const row = x.row<float>(i);
      apply_norm(row, rms_scale(row, x.cols, norm.eps), norm.weight, x.cols, out.row<float>(i));
    }
  });
}

void CpuBackend::add_rms_norm(Matrix x, const Norm& norm, Matrix sum) {
  TM_CHECK(x.rows == sum.rows && x.cols == sum.cols && x.dtype == DType::kF32 && sum.dtype == DType::kF32);
  pool_.parallel_for((x.rows + kRowsPerPiece - 1) / kRowsPerPiece, [&](int64_t piece, int) {
    for (int64_t i = piece * kRowsPerPiece; i < std::min(x.rows, (piece + 1) * kRowsPerPiece); ++i) {
      const float* const row = x.row<float>(i);
      add_norm(row, rms_scale(row, x.cols, norm.eps), norm.weight, x.cols, sum.row<float>(i));
    }
  });
}

}  // namespace tokenmill
