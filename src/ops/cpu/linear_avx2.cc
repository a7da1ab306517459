// The kernels of linear.h for AVX2 with FMA and F16C.
#include <immintrin.h>

#include <bit>
#include <iterator>

#include "base/check.h"
#include "ops/cpu/linear.h"
#include "ops/cpu/vector_math.h"

#define TM_KERNEL __attribute__((target("avx2,fma,f16c")))
#define TM_INLINE __attribute__((target("avx2,fma,f16c"), always_inline)) inline

namespace tokenmill {
namespace {

using F = __m256;
using I = __m256i;
using Shift = __m128i;
constexpr int kLanes = 8;
constexpr int kPrefetchBytes = 1024;
constexpr bool kSignedFullByte = true;
constexpr int64_t kStreamRowsMax = 2, kQuantizedRowsMax = 6;

TM_INLINE F zero() { return _mm256_setzero_ps(); }
TM_INLINE I zero_bits() { return _mm256_setzero_si256(); }
TM_INLINE F load(const void* p) { return _mm256_loadu_ps(static_cast<const float*>(p)); }
TM_INLINE I load_bits(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
TM_INLINE void store(void* p, F v) { _mm256_storeu_ps(static_cast<float*>(p), v); }
TM_INLINE void store_bits(void* p, I v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
TM_INLINE F broadcast(const void* p) { return _mm256_set1_ps(*static_cast<const float*>(p)); }
TM_INLINE I broadcast_bits(const void* p) { return _mm256_set1_epi32(*static_cast<const int32_t*>(p)); }
TM_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
TM_INLINE F fmadd(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
TM_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
TM_INLINE I add(I a, I b) { return _mm256_add_epi32(a, b); }
TM_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
TM_INLINE F negate(F a) { return _mm256_xor_ps(a, _mm256_set1_ps(-0.0f)); }
TM_INLINE F to_float(I a) { return _mm256_cvtepi32_ps(a); }
TM_INLINE F bf16_low(I pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
TM_INLINE F bf16_high(I pairs) {
  return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}
TM_INLINE F half_to_float(const void* p) { return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
TM_INLINE F int8_to_float(const void* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))));
}
TM_INLINE F uint8_to_float(const void* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))));
}
TM_INLINE I set1_bytes(int value) { return _mm256_set1_epi8(static_cast<char>(value)); }
TM_INLINE I subtract_bytes(I a, I b) { return _mm256_sub_epi8(a, b); }
TM_INLINE I low_nibbles(I line) { return _mm256_and_si256(line, _mm256_set1_epi8(15)); }
TM_INLINE I high_nibbles(I line) { return low_nibbles(_mm256_srli_epi16(line, 4)); }
TM_INLINE Shift make_shift(int bits) { return _mm_cvtsi32_si128(bits); }
TM_INLINE I shift_left(I a, Shift bits) { return _mm256_sll_epi32(a, bits); }
// sum += the four products of an unsigned code (kFullByte: code - 128) and a signed input in each lane. The 16-bit sums
// of two products cannot saturate: codes below 64 give at most 2 * 63 * 127 = 16,002, full bytes, as |code - 128| times
// the input with the code's sign, 2 * 128 * 127 = 32,512.
template <bool kFullByte>
TM_INLINE I dot(I sum, I codes, I inputs) {
  if (kFullByte) {
    const I values = _mm256_xor_si256(codes, _mm256_set1_epi8(static_cast<char>(0x80)));
    inputs = _mm256_sign_epi8(inputs, values);
    codes = _mm256_abs_epi8(values);
  }
  const I pairs = _mm256_maddubs_epi16(codes, inputs);
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

#include "ops/cpu/linear_kernels.h"

constexpr BlockFunction kFloat32Functions[] = {float32_block<1, 4>, float32_block<2, 4>, float32_block<3, 4>};
constexpr int kFloat32Widths[] = {4, 4, 4};
constexpr BlockFunction kBFloat16Functions[] = {bfloat16_block<1, 4>, bfloat16_block<2, 2>, bfloat16_block<3, 1>,
                                                bfloat16_block<4, 1>, bfloat16_block<5, 1>, bfloat16_block<6, 1>};
constexpr int kBFloat16Widths[] = {4, 2, 1, 1, 1, 1};

void run_float32(const TileJob& job) {
  run_blocks(job, job.inputs->float32, job.inputs->float32_stride, kFloat32Functions, kFloat32Widths,
             static_cast<int>(std::size(kFloat32Functions)));
}

void run_bfloat16(const TileJob& job) {
  run_blocks(job, job.inputs->rounded, job.inputs->rounded_stride, kBFloat16Functions, kBFloat16Widths,
             static_cast<int>(std::size(kBFloat16Functions)));
}

}  // namespace

const LinearKernels& linear_kernels_avx2() {
  static const LinearKernels kernels = {run_float32, run_bfloat16, run_quantized_any, gate_all, quantized_group, 0};
  return kernels;
}

}  // namespace tokenmill
