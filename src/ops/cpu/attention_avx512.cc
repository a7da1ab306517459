// g++ 12 warns of its own AVX-512 header wherever an unmasked intrinsic is inlined (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include <immintrin.h>

#include <algorithm>
#include <limits>

#include "ops/cpu/attention_kernels.h"
#include "ops/cpu/vector_math.h"

namespace tokenmill {
namespace {

constexpr int kPairsPerChunk = 16;  // 32 values of the contracted dimension
constexpr int kRowsMax = 4;         // rows a register block: 16 chains of two vectors

// The even and the odd element of pair `pair` for 16 columns of the right operand.
template <bool kBf16>
TM_TARGET_AVX512 inline __attribute__((always_inline)) void load_pair(const std::byte* b, int64_t columns, int64_t pair,
                                                                      __m512& even, __m512& odd) {
  if constexpr (kBf16) {
    const __m512i both = _mm512_loadu_si512(b + pair * columns * 4);
    even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    odd = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  } else {
    const auto* const values = reinterpret_cast<const float*>(b) + 2 * pair * columns;
    even = _mm512_loadu_ps(values);
    odd = _mm512_loadu_ps(values + columns);
  }
}

// out[r][0 .. 16 V) (+)= a[r][0 .. 2 pairs) * b, rows of a `a_stride` apart, of out `out_stride`. b has `columns`
// columns. With rescale: out[r] is multiplied by rescale[r] first; without, it starts from zero.
// The unrolled loops keep their arrays in registers.
template <bool kBf16, int R, int V>
TM_TARGET_AVX512 inline __attribute__((always_inline)) void product(const float* a, int64_t a_stride,
                                                                    const std::byte* b, int64_t columns, int pairs,
                                                                    const float* rescale, float* out,
                                                                    int64_t out_stride) {
  __m512 total[R][V];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      total[r][v] = rescale == nullptr
                        ? _mm512_setzero_ps()
                        : _mm512_mul_ps(_mm512_loadu_ps(out + r * out_stride + 16 * v), _mm512_set1_ps(rescale[r]));
    }
  }
  for (int begin = 0; begin < pairs; begin += kPairsPerChunk) {
    const int end = std::min(pairs, begin + kPairsPerChunk);
    __m512 even[R][V], odd[R][V];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) even[r][v] = odd[r][v] = _mm512_setzero_ps();
    }
    for (int pair = begin; pair < end; ++pair) {
      __m512 b_even[V], b_odd[V];
      // 16 columns take 64 bytes in both layouts: a pair of bf16, or one fp32.
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) load_pair<kBf16>(b + 64 * v, columns, pair, b_even[v], b_odd[v]);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const __m512 a_even = _mm512_set1_ps(a[r * a_stride + 2 * pair]);
        const __m512 a_odd = _mm512_set1_ps(a[r * a_stride + 2 * pair + 1]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          even[r][v] = _mm512_fmadd_ps(a_even, b_even[v], even[r][v]);
          odd[r][v] = _mm512_fmadd_ps(a_odd, b_odd[v], odd[r][v]);
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) total[r][v] = _mm512_add_ps(total[r][v], _mm512_add_ps(even[r][v], odd[r][v]));
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) _mm512_storeu_ps(out + r * out_stride + 16 * v, total[r][v]);
  }
}

template <bool kBf16, int R>
TM_TARGET_AVX512 void scores_rows(const float* q, int32_t dims, int32_t head_dim, const std::byte* k, float* scores) {
  product<kBf16, R, 2>(q, dims, k, kTileKeys, head_dim / 2, nullptr, scores, kTileKeys);
}

template <bool kBf16>
TM_TARGET_AVX512 void scores_tile(const float* q, int32_t dims, int32_t head_dim, int32_t rows, const std::byte* k,
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
TM_TARGET_AVX512 void values_rows(const float* probabilities, int32_t dims, const float* rescale, const std::byte* v,
                                  float* out) {
  int32_t dim = 0;
  for (; dim + 32 <= dims; dim += 32) {
    product<kBf16, R, 2>(probabilities, kTileKeys, v + dim * 4, dims, kTileKeys / 2, rescale, out + dim, dims);
  }
  if (dim < dims) {
    product<kBf16, R, 1>(probabilities, kTileKeys, v + dim * 4, dims, kTileKeys / 2, rescale, out + dim, dims);
  }
}

template <bool kBf16>
TM_TARGET_AVX512 void values_tile(const float* probabilities, int32_t dims, int32_t rows, const float* rescale,
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

// The two vectors were keys k and k + 16; then lanes j and j + 8, j + 4, j + 2, j + 1.
TM_TARGET_AVX512 inline __attribute__((always_inline)) float fold_sum(__m512 x) {
  const __m256 by8 = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  const __m128 by4 = _mm_add_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
  const __m128 by2 = _mm_add_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_add_ss(by2, _mm_shuffle_ps(by2, by2, 1)));
}

TM_TARGET_AVX512 inline __attribute__((always_inline)) __m512 round_to_bf16(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), last);
  return _mm512_castsi512_ps(_mm512_and_si512(rounded, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

template <bool kBf16>
TM_TARGET_AVX512 void softmax_tile(const SoftmaxTile& tile, int32_t rows, float* scores, float* maximum, float* sum,
                                   float* rescale) {
  const __m512 scale = _mm512_set1_ps(tile.scale), cap = _mm512_set1_ps(tile.softcap);
  const __m512 masked = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  for (int32_t r = 0; r < rows; ++r) {
    const int32_t position = tile.first_position + r / tile.group;
    const int32_t end = std::min(kTileKeys, position + 1 - tile.tile_begin);
    const int32_t begin = tile.window > 0 ? std::max(0, position - tile.window + 1 - tile.tile_begin) : 0;
    const uint32_t visible = static_cast<uint32_t>(((uint64_t{1} << end) - 1) & ~((uint64_t{1} << begin) - 1));
    float* const row = scores + int64_t{r} * kTileKeys;
    __m512 low = _mm512_mul_ps(_mm512_loadu_ps(row), scale), high = _mm512_mul_ps(_mm512_loadu_ps(row + 16), scale);
    if (tile.softcap > 0) {
      low = _mm512_mul_ps(cap, vector_math::tanh(_mm512_div_ps(low, cap)));
      high = _mm512_mul_ps(cap, vector_math::tanh(_mm512_div_ps(high, cap)));
    }
    low = _mm512_mask_mov_ps(masked, static_cast<__mmask16>(visible), low);
    high = _mm512_mask_mov_ps(masked, static_cast<__mmask16>(visible >> 16), high);
    _mm512_storeu_ps(row, low);
    _mm512_storeu_ps(row + 16, high);
    rescale[r] = _mm512_reduce_max_ps(_mm512_max_ps(low, high));
  }
  for (int32_t r = 0; r < rows; r += 16) {
    const __mmask16 present = static_cast<__mmask16>(rows - r >= 16 ? 0xffff : (1 << (rows - r)) - 1);
    const __m512 before = _mm512_maskz_loadu_ps(present, maximum + r);
    const __m512 after = _mm512_max_ps(before, _mm512_maskz_loadu_ps(present, rescale + r));
    _mm512_mask_storeu_ps(maximum + r, present, after);
    _mm512_mask_storeu_ps(rescale + r, present, vector_math::exp(_mm512_sub_ps(before, after)));
  }
  for (int32_t r = 0; r < rows; ++r) {
    float* const row = scores + int64_t{r} * kTileKeys;
    const __m512 peak = _mm512_set1_ps(maximum[r]);
    const __m512 low = vector_math::exp(_mm512_sub_ps(_mm512_loadu_ps(row), peak));
    const __m512 high = vector_math::exp(_mm512_sub_ps(_mm512_loadu_ps(row + 16), peak));
    sum[r] = sum[r] * rescale[r] + fold_sum(_mm512_add_ps(low, high));
    _mm512_storeu_ps(row, kBf16 ? round_to_bf16(low) : low);
    _mm512_storeu_ps(row + 16, kBf16 ? round_to_bf16(high) : high);
  }
}

constexpr AttentionKernels kBf16Kernels = {scores_tile<true>, softmax_tile<true>, values_tile<true>};
constexpr AttentionKernels kF32Kernels = {scores_tile<false>, softmax_tile<false>, values_tile<false>};

}  // namespace

const AttentionKernels& attention_kernels_avx512(DType kv_dtype) {
  return kv_dtype == DType::kF32 ? kF32Kernels : kBf16Kernels;
}

}  // namespace tokenmill
