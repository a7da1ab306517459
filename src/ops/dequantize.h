// Weight formats, exactly: what a block of ggml's formats holds, and its values in fp32.
//
// Every quantised format here is value = (d * scale) * (code - code_zero) + minimum, with d an fp16 and
//   one level:   scale 1, minimum an fp16 (or none), both for 32 values
//   two levels:  integer scales (and minimums, value -dmin * min) for each 16 or 32 values under one d (and dmin) for
//   256
// unpack_block gives those numbers, from which packed layouts are made; dequantize_row is the reference for all of
// them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"

namespace tokenmill {

struct QuantFormat {
  int block_values = 0;  // 32 or 256
  int group_values = 0;  // values a scale: 16 or 32
  int code_bits = 0;     // bits of the codes as stored by the format: 2 to 8
  int code_zero = 0;     // what to subtract from a code: a power of two, or 0
  bool two_level = false;
  bool has_min = false;

  int groups() const { return block_values / group_values; }
};

// type must be quantised.
const QuantFormat& quant_format(WeightType type);

struct QuantBlock {
  uint8_t codes[256];  // unsigned, in the order of the values
  uint16_t d, min;     // fp16 bits; min is Q4_1's and Q5_1's m, the k-quants' dmin; 0 where there is none
  int8_t scales[16];   // a group each; 1 for one-level formats
  uint8_t mins[16];    // a group each, two-level formats
};

// Decodes one block of the type's block_bytes at `data`.
void unpack_block(WeightType type, const std::byte* data, QuantBlock& block);

// Scale and minimum of a group, exact or rounded once as in ggml's reference.
inline float group_scale(const QuantFormat& format, const QuantBlock& block, int group) {
  return format.two_level ? f16_to_f32(block.d) * static_cast<float>(block.scales[group]) : f16_to_f32(block.d);
}
inline float group_min(const QuantFormat& format, const QuantBlock& block, int group) {
  if (!format.has_min) return 0;
  return format.two_level ? -(f16_to_f32(block.min) * static_cast<float>(block.mins[group])) : f16_to_f32(block.min);
}

// count values of any type (a multiple of its block_values) from `data` to out.
void dequantize_row(WeightType type, const std::byte* data, int64_t count, float* out);

}  // namespace tokenmill
