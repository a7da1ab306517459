#include <immintrin.h>

#include <algorithm>
#include <limits>

#include "ops/cpu/attention_kernels.h"
#include "ops/cpu/vector_math.h"

namespace tokenmill {
namespace {

constexpr int kPairsPerChunk = 16;  // 32 values of the contracted dimension
constexpr int kRowsMax = 4;         // rows a register block: 8 chains of one vector

// The even and the odd element of pair `pair` for 8 columns of the right operand.
template <bool kBf16>
TM_TARGET_AVX2 inline __attribute__((always_inline)) void load_pair(const std::byte* b, int64_t columns, int64_t pair,
                                                                    __m256& even, __m256& odd) {
  if constexpr (kBf16) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + pair * columns * 4));
    even = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    odd = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  } else {
    const auto* const values = reinterpret_cast<const float*>(b) + 2 * pair * columns;
    even = _mm256_loadu_ps(values);
    odd = _mm256_loadu_ps(values + columns);
  }
}

// out[r][0 .. 8) = (rescale ? out[r] * rescale[r] : 0) + a[r][0 .. 2 pairs) * b; b has `columns` columns.
// The unrolled loops keep their arrays in registers.
template <bool kBf16, int R>
TM_TARGET_AVX2 inline __attribute__((always_inline)) void product(const float* a, int64_t a_stride, const std::byte* b,
                                                                  int64_t columns, int pairs, const float* rescale,
                                                                  float* out, int64_t out_stride) {
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    const __m256 start = rescale == nullptr
                             ? _mm256_setzero_ps()
                             : _mm256_mul_ps(_mm256_loadu_ps(out + r * out_stride), _mm256_set1_ps(rescale[r]));
    _mm256_storeu_ps(out + r * out_stride, start);
  }
  for (int begin = 0; begin < pairs; begin += kPairsPerChunk) {
    const int end = std::min(pairs, begin + kPairsPerChunk);
    __m256 even[R], odd[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) even[r] = odd[r] = _mm256_setzero_ps();
    for (int pair = begin; pair < end; ++pair) {
      __m256 b_even, b_odd;
      load_pair<kBf16>(b, columns, pair, b_even, b_odd);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        even[r] = _mm256_fmadd_ps(_mm256_set1_ps(a[r * a_stride + 2 * pair]), b_even, even[r]);
        odd[r] = _mm256_fmadd_ps(_mm256_set1_ps(a[r * a_stride + 2 * pair + 1]), b_odd, odd[r]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      float* const target = out + r * out_stride;
      _mm256_storeu_ps(target, _mm256_add_ps(_mm256_loadu_ps(target), _mm256_add_ps(even[r], odd[r])));
    }
  }
}

template <bool kBf16, int R>
TM_TARGET_AVX2 void scores_rows(const float* q, int32_t dims, int32_t head_dim, const std::byte* k, float* scores) {
  // 8 columns take 32 bytes in both layouts: a pair of bf16, or one fp32.
  for (int32_t key = 0; key < kTileKeys; key += 8) {
    product<kBf16, R>(q, dims, k + key * 4, kTileKeys, head_dim / 2, nullptr, scores + key, kTileKeys);
  }
}

template <bool kBf16>
TM_TARGET_AVX2 void scores_tile(const float* q, int32_t dims, int32_t head_dim, int32_t rows, const std::byte* k,
                                float* scores) {
  int32_t r = 0;
  for (; r + kRowsMax <= rows; r += kRowsMax) {
    scores_rows<kBf16, kRowsMax>(q + int64_t{r} * dims, dims, head_dim, k, scores + r * kTileKeys);
  }
  q += int64_t{r} * dims;
  scores += r * kTileKeys;
  switch (rows - r) {
    case 3:
      return scores_rows<kBf16, 3>(q, dims, head_dim, k, scores);
    case 2:
      return scores_rows<kBf16, 2>(q, dims, head_dim, k, scores);
    case 1:
      return scores_rows<kBf16, 1>(q, dims, head_dim, k, scores);
    default:
      return;
  }
}

template <bool kBf16, int R>
TM_TARGET_AVX2 void values_rows(const float* probabilities, int32_t dims, const float* rescale, const std::byte* v,
                                float* out) {
  for (int32_t dim = 0; dim < dims; dim += 8) {
    product<kBf16, R>(probabilities, kTileKeys, v + dim * 4, dims, kTileKeys / 2, rescale, out + dim, dims);
  }
}

template <bool kBf16>
TM_TARGET_AVX2 void values_tile(const float* probabilities, int32_t dims, int32_t rows, const float* rescale,
                                const std::byte* v, float* out) {
  int32_t r = 0;
  for (; r + kRowsMax <= rows; r += kRowsMax) {
    values_rows<kBf16, kRowsMax>(probabilities + r * kTileKeys, dims, rescale + r, v, out + int64_t{r} * dims);
  }
  probabilities += r * kTileKeys;
  rescale += r;
  out += int64_t{r} * dims;
  switch (rows - r) {
    case 3:
      return values_rows<kBf16, 3>(probabilities, dims, rescale, v, out);
    case 2:
      return values_rows<kBf16, 2>(probabilities, dims, rescale, v, out);
    case 1:
      return values_rows<kBf16, 1>(probabilities, dims, rescale, v, out);
    default:
      return;
  }
}

// Lanes j and j + 4, then j + 2, j + 1.
TM_TARGET_AVX2 inline float fold_sum(__m256 by8) {
  const __m128 by4 = _mm_add_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
  const __m128 by2 = _mm_add_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_add_ss(by2, _mm_shuffle_ps(by2, by2, 1)));
}

TM_TARGET_AVX2 inline float fold_max(__m256 by8) {
  const __m128 by4 = _mm_max_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
  const __m128 by2 = _mm_max_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_max_ss(by2, _mm_shuffle_ps(by2, by2, 1)));
}

TM_TARGET_AVX2 inline __m256 round_to_bf16(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), last);
  return _mm256_castsi256_ps(_mm256_and_si256(rounded, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}

// Scales, caps and masks one row's scores; returns their maximum.
TM_TARGET_AVX2 float prepare_scores(const SoftmaxTile& tile, int32_t position, float* row) {
  const __m256 scale = _mm256_set1_ps(tile.scale), cap = _mm256_set1_ps(tile.softcap);
  const __m256 masked = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
  const int32_t end = position + 1 - tile.tile_begin;
  const int32_t begin = tile.window > 0 ? position - tile.window + 1 - tile.tile_begin : 0;
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  __m256 peak = masked;
  for (int32_t key = 0; key < kTileKeys; key += 8) {
    __m256 scores = _mm256_mul_ps(_mm256_loadu_ps(row + key), scale);
    if (tile.softcap > 0) scores = _mm256_mul_ps(cap, vector_math::tanh(_mm256_div_ps(scores, cap)));
    const __m256i index = _mm256_add_epi32(lanes, _mm256_set1_epi32(key));
    const __m256i visible = _mm256_and_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(end), index),
                                             _mm256_cmpgt_epi32(index, _mm256_set1_epi32(begin - 1)));
    scores = _mm256_blendv_ps(masked, scores, _mm256_castsi256_ps(visible));
    _mm256_storeu_ps(row + key, scores);
    peak = _mm256_max_ps(peak, scores);
  }
  return fold_max(peak);
}

template <bool kBf16>
TM_TARGET_AVX2 void softmax_tile(const SoftmaxTile& tile, int32_t rows, float* scores, float* maximum, float* sum,
                                 float* rescale) {
  for (int32_t r = 0; r < rows; ++r) {
    rescale[r] = prepare_scores(tile, tile.first_position + r / tile.group, scores + int64_t{r} * kTileKeys);
  }
  for (int32_t r = 0; r < rows; r += 8) {
    const int32_t present = std::min(8, rows - r);
    const __m256 before = _mm256_loadu_ps(maximum + r);  // there is room past the last row
    const __m256 after = _mm256_max_ps(before, _mm256_loadu_ps(rescale + r));
    alignas(32) float maxima[8], factors[8];
    _mm256_store_ps(maxima, after);
    _mm256_store_ps(factors, vector_math::exp(_mm256_sub_ps(before, after)));
    std::copy(maxima, maxima + present, maximum + r);
    std::copy(factors, factors + present, rescale + r);
  }
  for (int32_t r = 0; r < rows; ++r) {
    float* const row = scores + int64_t{r} * kTileKeys;
    const __m256 peak = _mm256_set1_ps(maximum[r]);
    __m256 p[4];
#pragma GCC unroll 4
    for (int part = 0; part < 4; ++part) {
      p[part] = vector_math::exp(_mm256_sub_ps(_mm256_loadu_ps(row + 8 * part), peak));
      _mm256_storeu_ps(row + 8 * part, kBf16 ? round_to_bf16(p[part]) : p[part]);
    }
    // Keys k and k + 16 first, as the two halves of the 512-bit path.
    const __m256 by16_low = _mm256_add_ps(p[0], p[2]), by16_high = _mm256_add_ps(p[1], p[3]);
    sum[r] = sum[r] * rescale[r] + fold_sum(_mm256_add_ps(by16_low, by16_high));
  }
}

constexpr AttentionKernels kBf16Kernels = {scores_tile<true>, softmax_tile<true>, values_tile<true>};
constexpr AttentionKernels kF32Kernels = {scores_tile<false>, softmax_tile<false>, values_tile<false>};

}  // namespace

const AttentionKernels& attention_kernels_avx2(DType kv_dtype) {
  return kv_dtype == DType::kF32 ? kF32Kernels : kBf16Kernels;
}

}  // namespace tokenmill
