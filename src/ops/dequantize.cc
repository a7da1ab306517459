#include "ops/dequantize.h"

#include <cstring>

#include "base/check.h"

namespace tokenmill {
namespace {

// Order follows WeightType from kQ8_0 on.
constexpr QuantFormat kFormats[] = {
    {32, 32, 8, 128, false, false},  // Q8_0
    {32, 32, 4, 8, false, false},    // Q4_0
    {32, 32, 4, 0, false, true},     // Q4_1
    {32, 32, 5, 16, false, false},   // Q5_0
    {32, 32, 5, 0, false, true},     // Q5_1
    {256, 16, 2, 0, true, true},     // Q2_K
    {256, 16, 3, 4, true, false},    // Q3_K
    {256, 32, 4, 0, true, true},     // Q4_K
    {256, 32, 5, 0, true, true},     // Q5_K
    {256, 16, 6, 32, true, false},   // Q6_K
};

uint8_t byte_at(const std::byte* data, int i) { return static_cast<uint8_t>(data[i]); }

uint16_t half_at(const std::byte* data, int i) {
  uint16_t half;
  std::memcpy(&half, data + i, sizeof half);
  return half;
}

// 16 bytes hold values 0 to 15 in their low halves and 16 to 31 in their high ones.
void unpack_nibbles(const std::byte* data, uint8_t* codes) {
  for (int i = 0; i < 16; ++i) {
    codes[i] = byte_at(data, i) & 15;
    codes[i + 16] = byte_at(data, i) >> 4;
  }
}

// Bit i of the four bytes at `data` is bit 4 of code i.
void add_fifth_bits(const std::byte* data, uint8_t* codes) {
  for (int i = 0; i < 32; ++i) codes[i] |= static_cast<uint8_t>(((byte_at(data, i / 8) >> (i % 8)) & 1) << 4);
}

// Q4_K's and Q5_K's 12 bytes: eight scales and eight minimums of 6 bits. The first four of each lie in the low bits of
// bytes 0 to 3 and 4 to 7; of the others the low 4 bits lie in bytes 8 to 11, the high 2 on top of the first eight.
void unpack_scales_6bit(const std::byte* data, QuantBlock& block) {
  for (int i = 0; i < 4; ++i) {
    const int scale = byte_at(data, i), min = byte_at(data, i + 4), low = byte_at(data, i + 8);
    block.scales[i] = static_cast<int8_t>(scale & 63);
    block.mins[i] = static_cast<uint8_t>(min & 63);
    block.scales[i + 4] = static_cast<int8_t>((low & 15) | (scale >> 6) << 4);
    block.mins[i + 4] = static_cast<uint8_t>((low >> 4) | (min >> 6) << 4);
  }
}

// scales and mins [16] | codes [64] | d | dmin
void unpack_q2_k(const std::byte* data, QuantBlock& block) {
  for (int group = 0; group < 16; ++group) {
    block.scales[group] = static_cast<int8_t>(byte_at(data, group) & 15);
    block.mins[group] = byte_at(data, group) >> 4;
  }
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, shift = i % 128 / 32 * 2;
    block.codes[i] = (byte_at(data, 16 + 32 * half + i % 32) >> shift) & 3;
  }
  block.d = half_at(data, 80);
  block.min = half_at(data, 82);
}

// high bits [32] | low two bits [64] | scales [12] | d
void unpack_q3_k(const std::byte* data, QuantBlock& block) {
  for (int i = 0; i < 256; ++i) {
    const int part = i / 32;  // of eight
    const int low = (byte_at(data, 32 + 32 * (part / 4) + i % 32) >> (part % 4 * 2)) & 3;
    const int high = (byte_at(data, i % 32) >> part) & 1;
    block.codes[i] = static_cast<uint8_t>(low | high << 2);
  }
  for (int group = 0; group < 16; ++group) {
    const int low = group < 8 ? byte_at(data, 96 + group) & 15 : byte_at(data, 96 + group - 8) >> 4;
    const int high = (byte_at(data, 104 + group % 4) >> (group / 4 * 2)) & 3;
    block.scales[group] = static_cast<int8_t>((low | high << 4) - 32);
  }
  block.d = half_at(data, 108);
}

// d | dmin | scales [12] | codes [128]: 32 bytes hold 64 values, the first 32 in the low halves
void unpack_q4_k(const std::byte* data, QuantBlock& block) {
  block.d = half_at(data, 0);
  block.min = half_at(data, 2);
  unpack_scales_6bit(data + 4, block);
  for (int i = 0; i < 256; ++i) {
    block.codes[i] = (byte_at(data, 16 + i / 64 * 32 + i % 32) >> (i % 64 / 32 * 4)) & 15;
  }
}

// As Q4_K, with fifth bits [32] before the codes: bit i / 32 of byte i % 32.
void unpack_q5_k(const std::byte* data, QuantBlock& block) {
  block.d = half_at(data, 0);
  block.min = half_at(data, 2);
  unpack_scales_6bit(data + 4, block);
  for (int i = 0; i < 256; ++i) {
    const int low = (byte_at(data, 48 + i / 64 * 32 + i % 32) >> (i % 64 / 32 * 4)) & 15;
    const int high = (byte_at(data, 16 + i % 32) >> (i / 32)) & 1;
    block.codes[i] = static_cast<uint8_t>(low | high << 4);
  }
}

// low four bits [128] | high two bits [64] | scales [16] | d
void unpack_q6_k(const std::byte* data, QuantBlock& block) {
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, quarter = i % 128 / 32;
    const int low = (byte_at(data, 64 * half + i % 64) >> (quarter / 2 * 4)) & 15;
    const int high = (byte_at(data, 128 + 32 * half + i % 32) >> (quarter * 2)) & 3;
    block.codes[i] = static_cast<uint8_t>(low | high << 4);
  }
  std::memcpy(block.scales, data + 192, 16);
  block.d = half_at(data, 208);
}

}  // namespace

const QuantFormat& quant_format(WeightType type) {
  TM_CHECK(info(type).quantized);
  return kFormats[static_cast<int>(type) - static_cast<int>(WeightType::kQ8_0)];
}

void unpack_block(WeightType type, const std::byte* data, QuantBlock& block) {
  block.min = 0;
  block.scales[0] = 1;
  if (!quant_format(type).two_level) block.d = half_at(data, 0);
  switch (type) {
    case WeightType::kQ8_0:
      for (int i = 0; i < 32; ++i) block.codes[i] = byte_at(data, 2 + i) ^ 0x80;
      return;
    case WeightType::kQ4_0:
      return unpack_nibbles(data + 2, block.codes);
    case WeightType::kQ4_1:
      block.min = half_at(data, 2);
      return unpack_nibbles(data + 4, block.codes);
    case WeightType::kQ5_0:
      unpack_nibbles(data + 6, block.codes);
      return add_fifth_bits(data + 2, block.codes);
    case WeightType::kQ5_1:
      block.min = half_at(data, 2);
      unpack_nibbles(data + 8, block.codes);
      return add_fifth_bits(data + 4, block.codes);
    case WeightType::kQ2K:
      return unpack_q2_k(data, block);
    case WeightType::kQ3K:
      return unpack_q3_k(data, block);
    case WeightType::kQ4K:
      return unpack_q4_k(data, block);
    case WeightType::kQ5K:
      return unpack_q5_k(data, block);
    case WeightType::kQ6K:
      return unpack_q6_k(data, block);
    case WeightType::kF32:
    case WeightType::kF16:
    case WeightType::kBF16:
      break;
  }
  TM_CHECK(!"a quantised type");
}

void dequantize_row(WeightType type, const std::byte* data, int64_t count, float* out) {
  if (type == WeightType::kF32) {
    std::memcpy(out, data, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  if (!info(type).quantized) {
    for (int64_t i = 0; i < count; ++i) {
      uint16_t bits;
      std::memcpy(&bits, data + 2 * i, sizeof bits);
      out[i] = type == WeightType::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
    }
    return;
  }
  const QuantFormat& format = quant_format(type);
  TM_CHECK(count % format.block_values == 0);
  QuantBlock block;
  for (int64_t begin = 0; begin < count; begin += format.block_values) {
    unpack_block(type, data, block);
    data += info(type).block_bytes;
    for (int i = 0; i < format.block_values; ++i) {
      const int group = i / format.group_values;
      const float product = group_scale(format, block, group) * static_cast<float>(block.codes[i] - format.code_zero);
      out[begin + i] = format.has_min ? product + group_min(format, block, group) : product;
    }
  }
}

}  // namespace tokenmill
