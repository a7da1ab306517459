// gather_rows and softcap.
#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/vector_math.h"

namespace tokenmill {
namespace {

constexpr int64_t kRowsPerPiece = 16;
constexpr int64_t kSoftcapPiece = 4096;  // values

// cap * tanh(x / cap) in place
TM_TARGET_AVX2 void softcap_values(float* values, int64_t n, float cap) {
  const __m256 caps = _mm256_set1_ps(cap);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 x = _mm256_div_ps(_mm256_loadu_ps(values + i), caps);
    _mm256_storeu_ps(values + i, _mm256_mul_ps(caps, vector_math::tanh(x)));
  }
  if (i == n) return;
  float tail[8] = {};
  std::copy(values + i, values + n, tail);
  _mm256_storeu_ps(tail, _mm256_mul_ps(caps, vector_math::tanh(_mm256_div_ps(_mm256_loadu_ps(tail), caps))));
  std::copy(tail, tail + (n - i), values + i);
}

}  // namespace

void CpuBackend::gather_rows(Matrix x, std::span<const int32_t> rows, Matrix out) {
  TM_CHECK(static_cast<int64_t>(rows.size()) == out.rows && x.cols == out.cols && x.dtype == out.dtype);
  const size_t row_bytes = static_cast<size_t>(x.cols) * size_of(x.dtype);
  const auto row_of = [](const Matrix& matrix, int64_t i) { return matrix.slice_rows(i, 1).data; };
  pool_.parallel_for((out.rows + kRowsPerPiece - 1) / kRowsPerPiece, [&](int64_t piece, int) {
    for (int64_t i = piece * kRowsPerPiece; i < std::min(out.rows, (piece + 1) * kRowsPerPiece); ++i) {
      std::memcpy(row_of(out, i), row_of(x, rows[static_cast<size_t>(i)]), row_bytes);
    }
  });
}

void CpuBackend::softcap(Matrix x, float cap) {
  TM_CHECK(x.dtype == DType::kF32 && cap > 0);
  const int64_t pieces_per_row = (x.cols + kSoftcapPiece - 1) / kSoftcapPiece;
  pool_.parallel_for(x.rows * pieces_per_row, [&](int64_t piece, int) {
    const int64_t begin = piece % pieces_per_row * kSoftcapPiece;
    softcap_values(x.row<float>(piece / pieces_per_row) + begin, std::min(kSoftcapPiece, x.cols - begin), cap);
  });
}

}  // namespace tokenmill
