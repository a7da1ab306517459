// The input side of a product: norm, then rounding to bf16 or quantising to int8, one row at a time. AVX2 on every
// processor: it is bound by loads and stores, and one code path has one set of bits.
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "ops/cpu/linear.h"
#include "ops/cpu/norm.h"
#include "ops/cpu/vector_math.h"

namespace tokenmill {
namespace {

// bf16 bits of eight values in the low halves of the lanes: round to nearest even, NaN stays NaN.
TM_TARGET_AVX2 inline __m256i round_to_bf16(__m256 values) {
  const __m256i bits = _mm256_castps_si256(values);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 is_nan = _mm256_cmp_ps(values, values, _CMP_UNORD_Q);
  const __m256i chosen =
      _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), is_nan));
  return _mm256_srli_epi32(chosen, 16);
}

// values [32] to fp32 values that bf16 holds, or to bf16.
TM_TARGET_AVX2 void round_chunk(const float* values, float* rounded, uint16_t* bfloat16) {
  for (int i = 0; i < 32; i += 16) {
    const __m256i low = round_to_bf16(_mm256_loadu_ps(values + i));
    const __m256i high = round_to_bf16(_mm256_loadu_ps(values + i + 8));
    if (rounded != nullptr) {
      _mm256_storeu_ps(rounded + i, _mm256_castsi256_ps(_mm256_slli_epi32(low, 16)));
      _mm256_storeu_ps(rounded + i + 8, _mm256_castsi256_ps(_mm256_slli_epi32(high, 16)));
    }
    if (bfloat16 != nullptr) {
      const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(bfloat16 + i), packed);
    }
  }
}

TM_TARGET_AVX2 inline int32_t sum_of(__m256i codes32_low, __m256i codes32_high) {
  __m256i sum = _mm256_add_epi32(codes32_low, codes32_high);
  __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1));
  return _mm_cvtsi128_si32(half);
}

// Largest magnitude of 32 values. Compared as integers, so that infinity and NaN win and reach the scale.
TM_TARGET_AVX2 inline float largest_magnitude(const float* values) {
  const __m256i mask = _mm256_set1_epi32(0x7fffffff);
  __m256i largest = _mm256_setzero_si256();
  for (int i = 0; i < 32; i += 8) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + i));
    largest = _mm256_max_epi32(largest, _mm256_and_si256(bits, mask));
  }
  __m128i half = _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
  half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1));
  return _mm_cvtss_f32(_mm_castsi128_ps(half));
}

TM_TARGET_AVX2 void quantize_chunk(const float* values, Int8Record& record) {
  const float largest = largest_magnitude(values);
  float scale = 0, inverse = 0;
  if (!(largest < kTinyGroup)) {  // NaN too
    scale = largest / 127.0f;
    inverse = 127.0f / largest;
  }
  const __m256 inverses = _mm256_set1_ps(inverse);
  const __m256i low_limit = _mm256_set1_epi32(-127), high_limit = _mm256_set1_epi32(127);
  __m256i part[4];
  for (int i = 0; i < 4; ++i) {
    part[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(values + 8 * i), inverses));
    part[i] = _mm256_min_epi32(_mm256_max_epi32(part[i], low_limit), high_limit);
  }
  const __m256i words_low = _mm256_packs_epi32(part[0], part[1]), words_high = _mm256_packs_epi32(part[2], part[3]);
  const __m256i bytes =
      _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words_low, words_high), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(record.codes), bytes);

  const int32_t sums[2] = {sum_of(part[0], part[1]), sum_of(part[2], part[3])};
  record.scale = scale;
  record.minus_sum = -(sums[0] + sums[1]);
  record.scaled_sum = scale * static_cast<float>(sums[0] + sums[1]);
  for (int i = 0; i < 2; ++i) {
    record.minus_sums16[i] = -sums[i];
    record.scaled_sums16[i] = scale * static_cast<float>(sums[i]);
  }
  record.unused = 0;
}

// What the record's codes leave of the values.
TM_TARGET_AVX2 void subtract_codes(const float* values, const Int8Record& record, float* rest) {
  const __m256 scales = _mm256_set1_ps(record.scale);
  for (int i = 0; i < 32; i += 8) {
    const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(record.codes + i));
    const __m256 floats = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
    _mm256_storeu_ps(rest + i, _mm256_fnmadd_ps(scales, floats, _mm256_loadu_ps(values + i)));
  }
}

}  // namespace

void pack_input_row(const float* x, const Norm* norm, int64_t row, const LinearInputs& inputs, float* row_scratch) {
  const int64_t k = inputs.k;
  const float* values = x;
  if (norm != nullptr) {
    apply_norm(x, rms_scale(x, k, norm->eps), norm->weight, k, row_scratch);
    values = row_scratch;
  }
  const size_t index = static_cast<size_t>(row);
  if (inputs.float32 != nullptr) {
    std::memcpy(inputs.float32 + index * inputs.float32_stride, values, static_cast<size_t>(k) * sizeof(float));
  }
  float* const rounded =
      inputs.rounded ? reinterpret_cast<float*>(inputs.rounded + index * inputs.rounded_stride) : nullptr;
  uint16_t* const bfloat16 =
      inputs.bfloat16 ? reinterpret_cast<uint16_t*>(inputs.bfloat16 + index * inputs.bfloat16_stride) : nullptr;
  if (rounded == nullptr && bfloat16 == nullptr && inputs.int8 == nullptr) return;
  for (int64_t chunk = 0; chunk < inputs.chunks(); ++chunk) {
    const int64_t begin = chunk * kChunkValues;
    const float* chunk_values = values + begin;
    float padded[kChunkValues] = {};
    if (begin + kChunkValues > k) {
      std::copy(values + begin, values + k, padded);
      chunk_values = padded;
    }
    if (rounded != nullptr || bfloat16 != nullptr) {
      round_chunk(chunk_values, rounded ? rounded + begin : nullptr, bfloat16 ? bfloat16 + begin : nullptr);
    }
    if (inputs.int8 == nullptr) continue;
    auto& record = *reinterpret_cast<Int8Record*>(inputs.int8_record(inputs.fine ? 2 * row : row, chunk));
    quantize_chunk(chunk_values, record);
    if (inputs.fine) {
      float rest[kChunkValues];
      subtract_codes(chunk_values, record, rest);
      quantize_chunk(rest, *reinterpret_cast<Int8Record*>(inputs.int8_record(2 * row + 1, chunk)));
    }
  }
}

}  // namespace tokenmill
