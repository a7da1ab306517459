// Quantised formats at compile time, and the expansion of a packed tile for products of several rows: codes to bytes,
// scales and minimums to fp32, once a tile. Over the vector type of the including file, as linear_kernels.h; included
// by it and by linear_amx.cc. No include guard: each including file compiles its own copy.

inline constexpr int kUnits = static_cast<int>(kTileRows) / kLanes;  // a tile
inline constexpr int kUnitBytes = 64 / kUnits;                       // of each 64-byte line

// What a kernel must know of a format at compile time. kSignedDot: codes of 8 full bits, whose dot product the AVX2
// code takes of code - 128 (dot<true>), which leaves no zero to correct.
template <int kCodeBits_, int kGroup_, bool kMin_, bool kTwoLevel_, bool kFullByte_ = false>
struct Format {
  static constexpr int kCodeBits = kCodeBits_, kGroup = kGroup_;
  static constexpr bool kMin = kMin_, kTwoLevel = kTwoLevel_, kFullByte = kFullByte_;
};

inline int zero_shift(const QuantFormat& format) {
  return format.code_zero == 0 ? 0 : std::countr_zero(static_cast<unsigned>(format.code_zero));
}

// Scales and minimums of a chunk's groups from a tile's packed form. `block_scales` points at the block's record (of
// this unit's first row where elements are 2 bytes), `unit` is the unit's number inside the tile.
template <class Fmt>
TM_INLINE void load_scales(const std::byte* record, int unit, int chunk_in_block, F d, F dmin, F* scale, F* min) {
  if (!Fmt::kTwoLevel) {
    scale[0] = d;
    min[0] = dmin;
    return;
  }
  constexpr int kGroups = 32 / Fmt::kGroup, kGroupBytes = Fmt::kMin ? 32 : 16, kLevelBytes = Fmt::kMin ? 64 : 32;
  const std::byte* group = record + kLevelBytes + chunk_in_block * kGroups * kGroupBytes + unit * kLanes;
#pragma GCC unroll 2
  for (int g = 0; g < kGroups; ++g, group += kGroupBytes) {
    scale[g] = mul(d, int8_to_float(group));
    if (Fmt::kMin) min[g] = negate(mul(dmin, uint8_to_float(group + 16)));
  }
}

// A unit of a quantised tile as the blocked kernels want it: codes as bytes, [k / 4][kLanes][4] at the stride of
// `codes`, scales and minimums as fp32, [k / group][kLanes].
struct ExpandedUnit {
  const std::byte* codes;
  size_t line_stride;  // bytes from 4 k to the next 4
  const std::byte* scales;
  const std::byte* mins;
};

// kSigned: the codes less their zero, as signed bytes, for formats of every width.
template <class Fmt, bool kSigned>
TM_KERNEL ExpandedUnit expand_unit(const WeightSegment& segment, const std::byte* tile, int unit, std::byte* scratch) {
  constexpr int kBlockChunks = Fmt::kTwoLevel ? 8 : 1;
  constexpr int kGroups = 32 / Fmt::kGroup;
  constexpr int kVectorBytes = 4 * kLanes;
  const int64_t chunks = segment.k / kChunkValues;
  ExpandedUnit expanded{tile + unit * kUnitBytes, 64, scratch, scratch + chunks * kGroups * kVectorBytes};
  std::byte* scales = scratch;
  std::byte* mins = scratch + chunks * kGroups * kVectorBytes;
  std::byte* codes = mins + chunks * kGroups * kVectorBytes;
  constexpr bool kCopies = kSigned || Fmt::kCodeBits == 4;
  const I zeros = set1_bytes(kSigned ? quant_format(segment.type).code_zero : 0);
  if (kCopies) expanded = {codes, kVectorBytes, expanded.scales, expanded.mins};
  const std::byte* record = tile + segment.scales_offset;
  const std::byte* source = tile + unit * kUnitBytes;
  for (int64_t begin = 0; begin < chunks; begin += kBlockChunks) {
    const F d = half_to_float(record + 2 * kLanes * unit);
    const F dmin = Fmt::kMin ? half_to_float(record + 32 + 2 * kLanes * unit) : d;
    for (int c = 0; c < kBlockChunks; ++c) {
      F scale[2], min[2];
      load_scales<Fmt>(record, unit, c, d, dmin, scale, min);
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) {
        store(scales, scale[g]);
        scales += kVectorBytes;
        if (!Fmt::kMin) continue;
        store(mins, min[g]);
        mins += kVectorBytes;
      }
      if (!kCopies) continue;
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const I line = load_bits(source + 64 * j);
        I low = Fmt::kCodeBits == 4 ? low_nibbles(line) : line;
        I high = Fmt::kCodeBits == 4 ? high_nibbles(line) : load_bits(source + 64 * (j + 4));
        if (kSigned) {
          low = subtract_bytes(low, zeros);
          high = subtract_bytes(high, zeros);
        }
        prefetch(source + 64 * j + kPrefetchBytes);
        store_bits(codes + j * kVectorBytes, low);
        store_bits(codes + (j + 4) * kVectorBytes, high);
      }
      source += Fmt::kCodeBits == 4 ? 256 : 512;
      codes += 8 * kVectorBytes;
    }
    record += Fmt::kTwoLevel ? (Fmt::kMin ? 64 : 32) + 8 * kGroups * (Fmt::kMin ? 32 : 16) : (Fmt::kMin ? 64 : 32);
  }
  return expanded;
}

// Calls visitor with the Format of a quantised type.
template <class Visitor>
void with_format(WeightType type, Visitor visitor) {
  switch (type) {
    case WeightType::kQ8_0:
      return visitor(Format<8, 32, false, false, true>());
    case WeightType::kQ4_0:
      return visitor(Format<4, 32, false, false>());
    case WeightType::kQ4_1:
      return visitor(Format<4, 32, true, false>());
    case WeightType::kQ5_0:
      return visitor(Format<8, 32, false, false>());
    case WeightType::kQ5_1:
      return visitor(Format<8, 32, true, false>());
    case WeightType::kQ2K:
      return visitor(Format<4, 16, true, true>());
    case WeightType::kQ3K:
      return visitor(Format<4, 16, false, true>());
    case WeightType::kQ4K:
      return visitor(Format<4, 32, true, true>());
    case WeightType::kQ5K:
      return visitor(Format<8, 32, true, true>());
    case WeightType::kQ6K:
      return visitor(Format<8, 16, false, true>());
    case WeightType::kF32:
    case WeightType::kF16:
    case WeightType::kBF16:
      break;
  }
  TM_CHECK(!"a quantised type");
}
