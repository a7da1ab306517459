// The vector type and operations of linear_kernels.h for AVX-512, for the files that include it inside a namespace of
// their own (linear_avx512.cc, linear_amx.cc). No include guard, as there. VNNI is assumed: without it no quantised
// kernel of these files is called.
using F = __m512;
using I = __m512i;
using Shift = __m128i;
constexpr int kLanes = 16;
constexpr int kPrefetchBytes = 1024;
constexpr bool kSignedFullByte = false;
constexpr int64_t kStreamRowsMax = 3, kQuantizedRowsMax = 12;

TM_INLINE F zero() { return _mm512_setzero_ps(); }
TM_INLINE I zero_bits() { return _mm512_setzero_si512(); }
TM_INLINE F load(const void* p) { return _mm512_loadu_ps(p); }
TM_INLINE I load_bits(const void* p) { return _mm512_loadu_si512(p); }
TM_INLINE void store(void* p, F v) { _mm512_storeu_ps(p, v); }
TM_INLINE void store_bits(void* p, I v) { _mm512_storeu_si512(p, v); }
TM_INLINE F broadcast(const void* p) { return _mm512_set1_ps(*static_cast<const float*>(p)); }
TM_INLINE I broadcast_bits(const void* p) { return _mm512_set1_epi32(*static_cast<const int32_t*>(p)); }
TM_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
TM_INLINE F fmadd(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
TM_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
TM_INLINE I add(I a, I b) { return _mm512_add_epi32(a, b); }
TM_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
TM_INLINE F negate(F a) { return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f)); }
TM_INLINE F to_float(I a) { return _mm512_cvtepi32_ps(a); }
TM_INLINE F bf16_low(I pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
TM_INLINE F bf16_high(I pairs) {
  return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}
TM_INLINE F half_to_float(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }
TM_INLINE F int8_to_float(const void* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
}
TM_INLINE F uint8_to_float(const void* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
}
TM_INLINE I set1_bytes(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }
TM_INLINE I subtract_bytes(I a, I b) { return _mm512_sub_epi8(a, b); }
TM_INLINE I low_nibbles(I line) { return _mm512_and_si512(line, _mm512_set1_epi8(15)); }
TM_INLINE I high_nibbles(I line) { return low_nibbles(_mm512_srli_epi16(line, 4)); }
TM_INLINE Shift make_shift(int bits) { return _mm_cvtsi32_si128(bits); }
TM_INLINE I shift_left(I a, Shift bits) { return _mm512_sll_epi32(a, bits); }
// sum += the four products of an unsigned code and a signed input in each lane
template <bool kFullByte>
TM_INLINE I dot(I sum, I codes, I inputs) {
  return _mm512_dpbusd_epi32(sum, codes, inputs);
}
