// Backend::pack: repacks a checkpoint's tensors into the layouts of packed_weight.h, in parallel, straight from the
// mapped file into their final place.
#include <atomic>
#include <bit>
#include <cstring>
#include <limits>
#include <string>

#include "base/check.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/packed_weight.h"
#include "tokenmill/error.h"

namespace tokenmill {
namespace {

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

bool is_finite(float value) { return (std::bit_cast<uint32_t>(value) & 0x7f800000u) != 0x7f800000u; }
bool is_finite_half(uint16_t half) { return (half & 0x7c00u) != 0x7c00u; }

// One part's rows inside a segment.
struct PartRange {
  const RawTensor* tensor;
  int64_t row_begin;  // of the segment
};

WeightSegment make_segment(SegmentKind kind, WeightType type, int64_t row_begin, int64_t k) {
  WeightSegment segment;
  segment.kind = kind;
  segment.type = type;
  segment.row_begin = row_begin;
  switch (kind) {
    case SegmentKind::kFloat32:
      segment.k = k;
      segment.tile_bytes = static_cast<size_t>(k) * 64;
      break;
    case SegmentKind::kBFloat16:
      segment.k = round_up(k, kChunkValues);
      segment.tile_bytes = static_cast<size_t>(segment.k) * 32;
      break;
    case SegmentKind::kQuantized: {
      const QuantFormat& format = quant_format(type);
      segment.k = k;
      segment.scales_offset = static_cast<size_t>(k / kChunkValues) * chunk_code_bytes(format);
      const size_t scales = static_cast<size_t>(k / format.block_values) * block_scale_bytes(format);
      segment.tile_bytes = static_cast<size_t>(round_up(static_cast<int64_t>(segment.scales_offset + scales), 64));
      break;
    }
  }
  return segment;
}

SegmentKind kind_for(WeightType type, Packing packing) {
  TM_CHECK(packing != Packing::kFloat16);  // has_float16() says so
  if (packing == Packing::kFloat32) return SegmentKind::kFloat32;
  return packing == Packing::kNative && info(type).quantized ? SegmentKind::kQuantized : SegmentKind::kBFloat16;
}

void check_parts(std::span<const RawTensor* const> parts, std::span<const float> bias) {
  TM_CHECK(!parts.empty());
  int64_t n = 0;
  for (const RawTensor* part : parts) {
    if (part->shape.size() != 2 || part->rows() <= 0 || part->cols() <= 0) {
      throw Error(ErrorKind::kValue, "Tensor " + part->name + " must be a matrix with at least one row and column.");
    }
    if (part->cols() != parts[0]->cols()) {
      throw Error(ErrorKind::kValue, "Tensors " + parts[0]->name + " and " + part->name + " have " +
                                         std::to_string(parts[0]->cols()) + " and " + std::to_string(part->cols()) +
                                         " columns; they must be equal.");
    }
    const WeightTypeInfo& type = info(part->type);
    if (part->cols() % type.block_values != 0) {
      throw Error(ErrorKind::kValue, "Tensor " + part->name + " has " + std::to_string(part->cols()) +
                                         " columns, which is no multiple of the " + std::to_string(type.block_values) +
                                         " values of a " + type.name + " block.");
    }
    n += part->rows();
  }
  TM_CHECK(bias.empty() || static_cast<int64_t>(bias.size()) == n);
  for (const float value : bias) {
    if (!is_finite(value)) {
      throw Error(ErrorKind::kValue, "The bias of " + parts[0]->name + " holds NaN or infinity.");
    }
  }
}

// The row of fp32 values `values` [k] into lane `lane` of a floating-point tile; false if one is NaN or infinite.
bool pack_float_row(const WeightSegment& segment, const float* values, int64_t k, int64_t lane, std::byte* tile) {
  bool finite = true;
  if (segment.kind == SegmentKind::kFloat32) {
    float* const out = reinterpret_cast<float*>(tile) + lane;
    for (int64_t i = 0; i < k; ++i) {
      finite &= is_finite(values[i]);
      out[i * kTileRows] = values[i];
    }
    return finite;
  }
  uint16_t* const out = reinterpret_cast<uint16_t*>(tile) + 2 * lane;
  for (int64_t i = 0; i < k; ++i) {
    const uint16_t rounded = f32_to_bf16(values[i]);
    finite &= is_finite(bf16_to_f32(rounded));  // also what overflows in rounding
    out[i / 2 * 2 * kTileRows + i % 2] = rounded;
  }
  return finite;
}

bool pack_quantized_row(const WeightSegment& segment, const std::byte* source, int64_t lane, std::byte* tile) {
  const QuantFormat& format = quant_format(segment.type);
  const bool four_bits = packed_code_bits(format) == 4;
  const size_t chunk_bytes = chunk_code_bytes(format);
  const int64_t blocks = segment.k / format.block_values;
  bool finite = true;
  QuantBlock block;
  for (int64_t b = 0; b < blocks; ++b) {
    unpack_block(segment.type, source + b * info(segment.type).block_bytes, block);
    finite &= is_finite_half(block.d) && is_finite_half(block.min);
    for (int first = 0; first < format.block_values; first += kChunkValues) {
      const int64_t chunk = (b * format.block_values + first) / kChunkValues;
      uint8_t* const out = reinterpret_cast<uint8_t*>(tile + static_cast<size_t>(chunk) * chunk_bytes) + 4 * lane;
      const uint8_t* const codes = block.codes + first;
      for (int i = 0; i < kChunkValues; ++i) {
        if (!four_bits) {
          out[i / 4 * 64 + i % 4] = codes[i];
        } else if (i < 16) {
          out[i / 4 * 64 + i % 4] = static_cast<uint8_t>(codes[i] | codes[i + 16] << 4);
        }
      }
    }
    std::byte* scales = tile + segment.scales_offset + static_cast<size_t>(b) * block_scale_bytes(format);
    std::memcpy(scales + 2 * lane, &block.d, 2);
    if (format.has_min) std::memcpy(scales + 32 + 2 * lane, &block.min, 2);
    if (!format.two_level) continue;
    scales += format.has_min ? 64 : 32;
    for (int group = 0; group < format.groups(); ++group, scales += group_scale_bytes(format)) {
      scales[lane] = static_cast<std::byte>(block.scales[group]);
      if (format.has_min) scales[16 + lane] = static_cast<std::byte>(block.mins[group]);
    }
  }
  return finite;
}

void atomic_min(std::atomic<int64_t>& target, int64_t value) {
  int64_t seen = target.load();
  while (value < seen && !target.compare_exchange_weak(seen, value)) {
  }
}

// Rows [row_begin, row_begin + count) of the whole weight, all of one tile, from `parts`.
const RawTensor* part_of_row(std::span<const RawTensor* const> parts, int64_t row, int64_t& row_in_part) {
  for (const RawTensor* part : parts) {
    if (row < part->rows()) {
      row_in_part = row;
      return part;
    }
    row -= part->rows();
  }
  TM_CHECK(!"row inside the parts");
  return nullptr;
}

}  // namespace

std::unique_ptr<Weight> CpuBackend::pack(std::span<const RawTensor* const> parts, std::span<const float> bias,
                                         Packing packing) {
  check_parts(parts, bias);
  auto weight = std::make_unique<PackedWeight>();
  weight->name = parts[0]->name;
  weight->k = parts[0]->cols();
  for (const RawTensor* part : parts) {
    const SegmentKind kind = kind_for(part->type, packing);
    const bool joins = !weight->segments.empty() && weight->segments.back().kind == kind &&
                       (kind != SegmentKind::kQuantized || weight->segments.back().type == part->type);
    if (!joins) weight->segments.push_back(make_segment(kind, part->type, weight->n, weight->k));
    weight->segments.back().rows += part->rows();
    weight->n += part->rows();
  }
  size_t bytes = 0;
  int64_t tiles = 0;
  for (const WeightSegment& segment : weight->segments) {
    bytes += static_cast<size_t>(segment.tiles()) * segment.tile_bytes;
    tiles += segment.tiles();
  }
  weight->memory = PageMemory(bytes, /*huge_pages=*/true);
  weight->bias.assign(bias.begin(), bias.end());
  weight->bytes = bytes + bias.size_bytes();
  std::byte* next = weight->memory.data();
  for (WeightSegment& segment : weight->segments) {
    segment.data = next;
    next += static_cast<size_t>(segment.tiles()) * segment.tile_bytes;
  }

  for (int worker = 0; worker < num_threads(); ++worker) {
    worker_scratch(worker, static_cast<size_t>(weight->k) * sizeof(float));
  }
  std::atomic<int64_t> bad_row = std::numeric_limits<int64_t>::max();
  pool_.parallel_for(tiles, [&](int64_t piece, int worker) {
    const WeightSegment* segment = weight->segments.data();
    for (; piece >= segment->tiles(); ++segment) piece -= segment->tiles();
    std::byte* const tile = const_cast<std::byte*>(segment->tile(piece));
    float* const values = reinterpret_cast<float*>(worker_scratch(worker, static_cast<size_t>(weight->k) * 4));
    const int64_t count = std::min(kTileRows, segment->rows - piece * kTileRows);
    for (int64_t lane = 0; lane < count; ++lane) {
      const int64_t row = segment->row_begin + piece * kTileRows + lane;
      int64_t row_in_part = 0;
      const RawTensor* const part = part_of_row(parts, row, row_in_part);
      const std::byte* const source = part->data + static_cast<size_t>(row_in_part) * part->row_bytes();
      bool finite = true;
      if (segment->kind == SegmentKind::kQuantized) {
        finite = pack_quantized_row(*segment, source, lane, tile);
      } else {
        dequantize_row(part->type, source, weight->k, values);
        finite = pack_float_row(*segment, values, weight->k, lane, tile);
      }
      if (!finite) atomic_min(bad_row, row);
    }
  });
  if (bad_row != std::numeric_limits<int64_t>::max()) {
    int64_t row_in_part = 0;
    const RawTensor* const part = part_of_row(parts, bad_row, row_in_part);
    throw Error(ErrorKind::kValue, "Tensor " + part->name + " holds NaN or infinity in row " +
                                       std::to_string(row_in_part) +
                                       "; the file is damaged, or its weights overflow: fetch it again.");
  }
  return weight;
}

}  // namespace tokenmill
