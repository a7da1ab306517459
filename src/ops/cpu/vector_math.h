// exp, tanh and the gated activations for AVX2, AVX-512 and scalar code, with the same bits on each: all three run the
// same sequence of correctly rounded fp32 operations (explicit fused multiply-adds, no reassociation).
//
// exp: x = n ln2 + r, |r| <= ln2 / 2, exp(r) = 1 + r + r^2 q(r) with q a minimax polynomial of degree 4; at most 2 ulp.
// Below kExpLow the result is 0, above kExpHigh it is that of kExpHigh (finite); NaN stays NaN.
#pragma once

#include <immintrin.h>

#include <bit>
#include <cmath>
#include <cstdint>

#define TM_TARGET_AVX2 __attribute__((target("avx2,fma,f16c")))
#define TM_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))

namespace tokenmill::vector_math {

inline constexpr float kExpLow = -87.0f, kExpHigh = 88.0f;
inline constexpr float kLog2E = 1.44269504f;
// ln2 in two parts; n * kLn2High is exact for |n| < 2^9.
inline constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
// Adding it to |x| < 2^22 rounds x to an integer, which then stands in the low bits of the sum.
inline constexpr float kRoundMagic = 12582912.0f;
inline constexpr float kExpQ[5] = {0.5f, 0.16666573286056519f, 0.041666362434625626f, 0.008363775908946991f,
                                   0.0013942160876467824f};
// tanh(x) = x + x z p(z), z = x^2, below kTanhSmall; there 1 - 2 / (exp(2 |x|) + 1) would cancel.
inline constexpr float kTanhSmall = 0.625f;
inline constexpr float kTanhP[5] = {-0.333333283662796f, 0.13332794606685638f, -0.053854070603847504f,
                                    0.021010078489780426f, -0.006113188341259956f};
// gelu_tanh(x) = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3); the constants are 2 sqrt(2 / pi) times 1
// and 0.044715.
inline constexpr float kGeluLinear = 1.5957691216f, kGeluCubic = 0.0713548162726f;

// --- scalar ---------------------------------------------------------------------------------------------------------
inline float exp(float x) {
  float c = kExpHigh < x ? kExpHigh : x;
  c = kExpLow > c ? kExpLow : c;
  const float t = std::fma(c, kLog2E, kRoundMagic);
  const float n = t - kRoundMagic;
  float r = std::fma(n, -kLn2High, c);
  r = std::fma(n, -kLn2Low, r);
  float q = std::fma(kExpQ[4], r, kExpQ[3]);
  q = std::fma(q, r, kExpQ[2]);
  q = std::fma(q, r, kExpQ[1]);
  q = std::fma(q, r, kExpQ[0]);
  const float p = std::fma(r * r, q, r) + 1.0f;
  const float scale = std::bit_cast<float>((std::bit_cast<uint32_t>(t) << 23) + (127u << 23));
  return x < kExpLow ? 0.0f : p * scale;
}

inline float tanh(float x) {
  const float a = std::fabs(x);
  const float z = x * x;
  float p = std::fma(kTanhP[4], z, kTanhP[3]);
  p = std::fma(p, z, kTanhP[2]);
  p = std::fma(p, z, kTanhP[1]);
  p = std::fma(p, z, kTanhP[0]);
  const float small = std::fma(x * z, p, x);
  const float large = std::copysign(1.0f - 2.0f / (exp(a + a) + 1.0f), x);
  return a < kTanhSmall ? small : large;
}

inline float silu(float x) { return x / (1.0f + exp(-x)); }

inline float gelu_tanh(float x) {
  const float u2 = x * std::fma(x * x, kGeluCubic, kGeluLinear);
  return x / (1.0f + exp(-u2));
}

// --- AVX2 -----------------------------------------------------------------------------------------------------------
// min and max return their second operand when one is NaN, so that NaN passes through.
TM_TARGET_AVX2 inline __m256 exp(__m256 x) {
  __m256 c = _mm256_min_ps(_mm256_set1_ps(kExpHigh), x);
  c = _mm256_max_ps(_mm256_set1_ps(kExpLow), c);
  const __m256 magic = _mm256_set1_ps(kRoundMagic);
  const __m256 t = _mm256_fmadd_ps(c, _mm256_set1_ps(kLog2E), magic);
  const __m256 n = _mm256_sub_ps(t, magic);
  __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-kLn2High), c);
  r = _mm256_fmadd_ps(n, _mm256_set1_ps(-kLn2Low), r);
  __m256 q = _mm256_fmadd_ps(_mm256_set1_ps(kExpQ[4]), r, _mm256_set1_ps(kExpQ[3]));
  q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(kExpQ[2]));
  q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(kExpQ[1]));
  q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(kExpQ[0]));
  const __m256 p = _mm256_add_ps(_mm256_fmadd_ps(_mm256_mul_ps(r, r), q, r), _mm256_set1_ps(1.0f));
  const __m256i bits = _mm256_add_epi32(_mm256_slli_epi32(_mm256_castps_si256(t), 23), _mm256_set1_epi32(127 << 23));
  const __m256 result = _mm256_mul_ps(p, _mm256_castsi256_ps(bits));
  return _mm256_andnot_ps(_mm256_cmp_ps(x, _mm256_set1_ps(kExpLow), _CMP_LT_OQ), result);
}

TM_TARGET_AVX2 inline __m256 tanh(__m256 x) {
  const __m256 sign_bit = _mm256_set1_ps(-0.0f), one = _mm256_set1_ps(1.0f);
  const __m256 a = _mm256_andnot_ps(sign_bit, x);
  const __m256 z = _mm256_mul_ps(x, x);
  __m256 p = _mm256_fmadd_ps(_mm256_set1_ps(kTanhP[4]), z, _mm256_set1_ps(kTanhP[3]));
  p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(kTanhP[2]));
  p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(kTanhP[1]));
  p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(kTanhP[0]));
  const __m256 small = _mm256_fmadd_ps(_mm256_mul_ps(x, z), p, x);
  const __m256 e = _mm256_add_ps(exp(_mm256_add_ps(a, a)), one);
  const __m256 large = _mm256_sub_ps(one, _mm256_div_ps(_mm256_set1_ps(2.0f), e));
  const __m256 signed_large = _mm256_or_ps(_mm256_andnot_ps(sign_bit, large), _mm256_and_ps(sign_bit, x));
  return _mm256_blendv_ps(signed_large, small, _mm256_cmp_ps(a, _mm256_set1_ps(kTanhSmall), _CMP_LT_OQ));
}

TM_TARGET_AVX2 inline __m256 silu(__m256 x) {
  const __m256 minus_x = _mm256_xor_ps(x, _mm256_set1_ps(-0.0f));
  return _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0f), exp(minus_x)));
}

TM_TARGET_AVX2 inline __m256 gelu_tanh(__m256 x) {
  const __m256 inner = _mm256_fmadd_ps(_mm256_mul_ps(x, x), _mm256_set1_ps(kGeluCubic), _mm256_set1_ps(kGeluLinear));
  const __m256 minus_u2 = _mm256_xor_ps(_mm256_mul_ps(x, inner), _mm256_set1_ps(-0.0f));
  return _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0f), exp(minus_u2)));
}

// --- AVX-512 --------------------------------------------------------------------------------------------------------
TM_TARGET_AVX512 inline __m512 exp(__m512 x) {
  __m512 c = _mm512_min_ps(_mm512_set1_ps(kExpHigh), x);
  c = _mm512_max_ps(_mm512_set1_ps(kExpLow), c);
  const __m512 magic = _mm512_set1_ps(kRoundMagic);
  const __m512 t = _mm512_fmadd_ps(c, _mm512_set1_ps(kLog2E), magic);
  const __m512 n = _mm512_sub_ps(t, magic);
  __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-kLn2High), c);
  r = _mm512_fmadd_ps(n, _mm512_set1_ps(-kLn2Low), r);
  __m512 q = _mm512_fmadd_ps(_mm512_set1_ps(kExpQ[4]), r, _mm512_set1_ps(kExpQ[3]));
  q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(kExpQ[2]));
  q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(kExpQ[1]));
  q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(kExpQ[0]));
  const __m512 p = _mm512_add_ps(_mm512_fmadd_ps(_mm512_mul_ps(r, r), q, r), _mm512_set1_ps(1.0f));
  const __m512i bits = _mm512_add_epi32(_mm512_slli_epi32(_mm512_castps_si512(t), 23), _mm512_set1_epi32(127 << 23));
  const __mmask16 nonzero = _mm512_cmp_ps_mask(x, _mm512_set1_ps(kExpLow), _CMP_NLT_UQ);
  return _mm512_maskz_mul_ps(nonzero, p, _mm512_castsi512_ps(bits));
}

TM_TARGET_AVX512 inline __m512 tanh(__m512 x) {
  const __m512 sign_bit = _mm512_set1_ps(-0.0f), one = _mm512_set1_ps(1.0f);
  const __m512 a = _mm512_andnot_ps(sign_bit, x);
  const __m512 z = _mm512_mul_ps(x, x);
  __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(kTanhP[4]), z, _mm512_set1_ps(kTanhP[3]));
  p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(kTanhP[2]));
  p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(kTanhP[1]));
  p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(kTanhP[0]));
  const __m512 small = _mm512_fmadd_ps(_mm512_mul_ps(x, z), p, x);
  const __m512 e = _mm512_add_ps(exp(_mm512_add_ps(a, a)), one);
  const __m512 large = _mm512_sub_ps(one, _mm512_div_ps(_mm512_set1_ps(2.0f), e));
  const __m512 signed_large = _mm512_or_ps(_mm512_andnot_ps(sign_bit, large), _mm512_and_ps(sign_bit, x));
  const __mmask16 is_small = _mm512_cmp_ps_mask(a, _mm512_set1_ps(kTanhSmall), _CMP_LT_OQ);
  return _mm512_mask_blend_ps(is_small, signed_large, small);
}

TM_TARGET_AVX512 inline __m512 silu(__m512 x) {
  const __m512 minus_x = _mm512_xor_ps(x, _mm512_set1_ps(-0.0f));
  return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), exp(minus_x)));
}

TM_TARGET_AVX512 inline __m512 gelu_tanh(__m512 x) {
  const __m512 inner = _mm512_fmadd_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(kGeluCubic), _mm512_set1_ps(kGeluLinear));
  const __m512 minus_u2 = _mm512_xor_ps(_mm512_mul_ps(x, inner), _mm512_set1_ps(-0.0f));
  return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), exp(minus_u2)));
}

}  // namespace tokenmill::vector_math
