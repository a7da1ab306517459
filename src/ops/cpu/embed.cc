// Backend::embed: rows of a packed weight, dequantised exactly; the same packed table serves as lm_head.
#include <cstring>

#include "base/check.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/packed_weight.h"

namespace tokenmill {
namespace {

constexpr int64_t kRowsPerPiece = 8;

template <class T>
T load(const std::byte* data, size_t index) {
  T value;
  std::memcpy(&value, data + index * sizeof(T), sizeof(T));
  return value;
}

void unpack_quantized(const WeightSegment& segment, const std::byte* tile, size_t lane, float* out) {
  const QuantFormat& format = quant_format(segment.type);
  const bool four_bits = packed_code_bits(format) == 4;
  QuantBlock block{};
  for (int64_t begin = 0; begin < segment.k; begin += format.block_values) {
    const std::byte* scales =
        tile + segment.scales_offset + static_cast<size_t>(begin / format.block_values) * block_scale_bytes(format);
    block.d = load<uint16_t>(scales, lane);
    if (format.has_min) block.min = load<uint16_t>(scales, 16 + lane);
    scales += format.has_min ? 64 : 32;
    for (int group = 0; format.two_level && group < format.groups(); ++group, scales += group_scale_bytes(format)) {
      block.scales[group] = load<int8_t>(scales, lane);
      if (format.has_min) block.mins[group] = load<uint8_t>(scales, 16 + lane);
    }
    for (int i = 0; i < format.block_values; ++i) {
      const int64_t chunk = (begin + i) / kChunkValues, in_chunk = (begin + i) % kChunkValues;
      const std::byte* const codes = tile + static_cast<size_t>(chunk) * chunk_code_bytes(format) + 4 * lane;
      const int64_t position = four_bits ? in_chunk % 16 : in_chunk;
      int code = load<uint8_t>(codes, static_cast<size_t>(position / 4 * 64 + position % 4));
      if (four_bits) code = in_chunk < 16 ? code & 15 : code >> 4;
      const int group = i / format.group_values;
      const float product = group_scale(format, block, group) * static_cast<float>(code - format.code_zero);
      out[begin + i] = format.has_min ? product + group_min(format, block, group) : product;
    }
  }
}

}  // namespace

void unpack_row(const PackedWeight& weight, int64_t row, float* out) {
  const WeightSegment* segment = weight.segments.data();
  while (row >= segment->row_begin + segment->rows) ++segment;
  const int64_t in_segment = row - segment->row_begin;
  const std::byte* const tile = segment->tile(in_segment / kTileRows);
  const size_t lane = static_cast<size_t>(in_segment % kTileRows);
  switch (segment->kind) {
    case SegmentKind::kFloat32:
      for (size_t i = 0; i < static_cast<size_t>(weight.k); ++i) out[i] = load<float>(tile, i * 16 + lane);
      return;
    case SegmentKind::kBFloat16:
      for (size_t i = 0; i < static_cast<size_t>(weight.k); ++i) {
        out[i] = bf16_to_f32(load<uint16_t>(tile, i / 2 * 32 + 2 * lane + i % 2));
      }
      return;
    case SegmentKind::kQuantized:
      return unpack_quantized(*segment, tile, lane, out);
  }
}

void CpuBackend::embed(std::span<const int32_t> ids, const Weight& table, float scale, Matrix out) {
  const auto& weight = static_cast<const PackedWeight&>(table);
  TM_CHECK(out.rows == static_cast<int64_t>(ids.size()) && out.cols == weight.k && out.dtype == DType::kF32);
  for (const int32_t id : ids) TM_CHECK(id >= 0 && id < weight.n);
  const int64_t count = static_cast<int64_t>(ids.size());
  pool_.parallel_for((count + kRowsPerPiece - 1) / kRowsPerPiece, [&](int64_t piece, int) {
    for (int64_t i = piece * kRowsPerPiece; i < std::min(count, (piece + 1) * kRowsPerPiece); ++i) {
      float* const row = out.row<float>(i);
      unpack_row(weight, ids[static_cast<size_t>(i)], row);
      if (scale != 1.0f) {
        for (int64_t j = 0; j < weight.k; ++j) row[j] *= scale;
      }
    }
  });
}

}  // namespace tokenmill
