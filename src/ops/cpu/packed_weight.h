// How the CPU backend holds weights: tiles of 16 rows, each tile one contiguous stream over K.
//
//   fp32        [k][16]                                                                       one line a k
//   bf16        [k / 2][16][2]        32 k are 1 KiB: one operand of the tile unit            k padded to 32 with zeros
//   quantised   codes, then scales:
//     8 bits    [k / 4][16][4]        64 bytes hold 4 k of 16 rows
//     4 bits    [k / 32][4][16][4]    64 bytes hold k 4j .. 4j + 3 in the low halves, 4j + 16 .. 4j + 19 in the high
//     scales    one level:  a 32 k:   d [16] fp16, then min [16] fp16 if the format has it
//               two levels: a 256 k:  d [16] fp16, dmin [16] fp16 if any, then a group: scale [16] int8, min [16] uint8
//                                     if any
// Codes are unsigned (code_zero is subtracted from the integer dot product). Formats of up to 4 bits take 4 bits a
// code, those of 5, 6 and 8 bits take 8: Q5_0 and Q5_1 grow by 55 and 50 %, Q5_K by 46 %, Q6_K by 30 %, and so do the
// bytes a decode step streams. The scales are the checkpoint's own numbers, so the packed form gives back every value
// exactly; a tied embedding is looked up in it.
//
// A weight is a list of segments by row range (parts of different types), each beginning with a tile of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/page_memory.h"
#include "ops/backend.h"
#include "ops/dequantize.h"

namespace tokenmill {

inline constexpr int64_t kTileRows = 16;
inline constexpr int64_t kChunkValues = 32;  // K of one bf16 tile, and of one group of activations

enum class SegmentKind { kFloat32, kBFloat16, kQuantized };

struct WeightSegment {
  SegmentKind kind = SegmentKind::kFloat32;
  WeightType type = WeightType::kF32;  // kQuantized: the format
  int64_t row_begin = 0, rows = 0;     // of the whole weight
  int64_t k = 0;                       // padded
  size_t tile_bytes = 0;
  size_t scales_offset = 0;  // from a tile's begin
  const std::byte* data = nullptr;

  int64_t tiles() const { return (rows + kTileRows - 1) / kTileRows; }
  const std::byte* tile(int64_t i) const { return data + static_cast<size_t>(i) * tile_bytes; }
};

struct PackedWeight final : Weight {
  std::vector<WeightSegment> segments;  // ascending rows, without gaps
  std::vector<float> bias;              // [n] or empty
  PageMemory memory;
};

// 4 or 8: bits a code in the packed form.
inline int packed_code_bits(const QuantFormat& format) { return format.code_bits <= 4 ? 4 : 8; }
// Bytes of codes a chunk of 32 k.
inline size_t chunk_code_bytes(const QuantFormat& format) { return packed_code_bits(format) == 4 ? 256 : 512; }
// Bytes of scales a block (32 or 256 k), and of one group's record in a two-level block.
inline size_t group_scale_bytes(const QuantFormat& format) { return format.has_min ? 32 : 16; }
inline size_t block_scale_bytes(const QuantFormat& format) {
  const size_t level = format.has_min ? 64 : 32;
  return format.two_level ? level + static_cast<size_t>(format.groups()) * group_scale_bytes(format) : level;
}

// Row `row` of the weight, dequantised from the packed form, to out [k].
void unpack_row(const PackedWeight& weight, int64_t row, float* out);

}  // namespace tokenmill
