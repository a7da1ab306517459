// The vector kernels of linear.h, written once over the vector type of the including file (linear_avx2.cc,
// linear_avx512.cc), which defines before including it, inside a namespace of its own:
//   TM_KERNEL  the target attribute      TM_INLINE  the same, always inlined
//   F, I       vectors of kLanes floats and of as many int32      the operations used below
// A "unit" is kLanes rows of a tile: the whole tile with AVX-512, half of it with AVX2.
// No include guard: each including file compiles its own copy.

#include "ops/cpu/linear_expand.h"

// T units times R rows at a time.
struct Block {
  const std::byte* weights[4];
  int unit[4];              // which of its tile
  const std::byte* inputs;  // first row
  size_t input_stride;      // bytes from row to row; quantised: from chunk to chunk of the group of rows
  float* c[4];              // first row
  int64_t c_stride;
  int64_t rows;  // quantized_block: how many of the R rows to store
  int64_t k;
  const TileJob* job;
};

using BlockFunction = void (*)(const Block&);

// --- fp32 -----------------------------------------------------------------------------------------------------------
template <int R, int T>
TM_KERNEL void float32_block(const Block& block) {
  const std::byte* w[T];
  for (int t = 0; t < T; ++t) w[t] = block.weights[t];
  F acc[R][T];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) acc[r][t] = zero();
  }
  for (int64_t k = 0; k < block.k; ++k) {
    F weight[T];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      weight[t] = load(w[t] + 64 * k);
      if (R <= 3) prefetch(w[t] + 64 * k + kPrefetchBytes);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const F x = broadcast(block.inputs + static_cast<size_t>(r) * block.input_stride + 4 * k);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) acc[r][t] = fmadd(x, weight[t], acc[r][t]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) store(block.c[t] + r * block.c_stride, acc[r][t]);
  }
}

// --- bf16 -----------------------------------------------------------------------------------------------------------
template <int R, int T>
TM_KERNEL void bfloat16_block(const Block& block) {
  F acc[R][T];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) acc[r][t] = zero();
  }
  for (int64_t chunk = 0; chunk < block.k / kChunkValues; ++chunk) {
    F even[R][T], odd[R][T];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) even[r][t] = odd[r][t] = zero();
    }
    const std::byte* const x = block.inputs + 128 * chunk;
#pragma GCC unroll 1
    for (int64_t j = 0; j < 16; ++j) {
      F weight_even[T], weight_odd[T];
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        const std::byte* const line = block.weights[t] + 1024 * chunk + 64 * j;
        if (R <= 3) prefetch(line + kPrefetchBytes);
        const I bits = load_bits(line);
        weight_even[t] = bf16_low(bits);
        weight_odd[t] = bf16_high(bits);
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const std::byte* const pair = x + static_cast<size_t>(r) * block.input_stride + 8 * j;
        const F x_even = broadcast(pair), x_odd = broadcast(pair + 4);
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) {
          even[r][t] = fmadd(x_even, weight_even[t], even[r][t]);
          odd[r][t] = fmadd(x_odd, weight_odd[t], odd[r][t]);
        }
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) acc[r][t] = add(acc[r][t], add(even[r][t], odd[r][t]));
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) store(block.c[t] + r * block.c_stride, acc[r][t]);
  }
}

// --- quantised ------------------------------------------------------------------------------------------------------
// acc after one chunk of 32 k: `first` and `second` are the integer dot products of its halves, less the zero's part.
template <int kGroup, bool kMin>
TM_INLINE F add_chunk(F acc, I first, I second, const F* scale, const F* min, const Int8Record& x) {
  const F scale_x = broadcast(&x.scale);
  if (kGroup == 32) {
    acc = fmadd(to_float(add(first, second)), mul(scale_x, scale[0]), acc);
    if (kMin) acc = fmadd(broadcast(&x.scaled_sum), min[0], acc);
    return acc;
  }
  acc = fmadd(to_float(first), mul(scale_x, scale[0]), acc);
  if (kMin) acc = fmadd(broadcast(&x.scaled_sums16[0]), min[0], acc);
  acc = fmadd(to_float(second), mul(scale_x, scale[1]), acc);
  if (kMin) acc = fmadd(broadcast(&x.scaled_sums16[1]), min[1], acc);
  return acc;
}

// Where the integer dot products of a chunk's halves begin: the zero's part.
template <int kGroup, bool kZero>
TM_INLINE void begin_dots(I& first, I& second, const Int8Record& x, Shift shift) {
  first = second = zero_bits();
  if (!kZero) return;
  if (kGroup == 32) {
    first = shift_left(broadcast_bits(&x.minus_sum), shift);
  } else {
    first = shift_left(broadcast_bits(&x.minus_sums16[0]), shift);
    second = shift_left(broadcast_bits(&x.minus_sums16[1]), shift);
  }
}

// One to three rows straight from the packed form: decode.
template <class Fmt, int R>
TM_KERNEL void quantized_stream(const Block& block) {
  constexpr int T = 4;
  constexpr int kBlockChunks = Fmt::kTwoLevel ? 8 : 1;
  constexpr int kChunkBytes = Fmt::kCodeBits == 4 ? 256 : 512;
  constexpr int kLevelBytes = Fmt::kMin ? 64 : 32;
  constexpr int kBlockScaleBytes = kLevelBytes + (Fmt::kTwoLevel ? 256 / Fmt::kGroup * (Fmt::kMin ? 32 : 16) : 0);
  constexpr bool kZero = !Fmt::kMin && !(Fmt::kFullByte && kSignedFullByte);
  const WeightSegment& segment = *block.job->segment;
  const Shift shift = make_shift(zero_shift(quant_format(segment.type)));
  const std::byte* w[T];
  const std::byte* records[T];
  int unit[T];
  for (int t = 0; t < T; ++t) {
    w[t] = block.weights[t];
    unit[t] = kUnits == 1 ? 0 : block.unit[t];
    records[t] = w[t] - unit[t] * kUnitBytes + segment.scales_offset;
  }
  F acc[R][T];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) acc[r][t] = zero();
  }
  const int64_t blocks = block.k / (kBlockChunks * kChunkValues);
  const std::byte* inputs = block.inputs;
  for (int64_t b = 0; b < blocks; ++b) {
    F d[T], dmin[T];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      d[t] = half_to_float(records[t] + 2 * kLanes * unit[t]);
      dmin[t] = Fmt::kMin ? half_to_float(records[t] + 32 + 2 * kLanes * unit[t]) : d[t];
      prefetch(records[t] + kPrefetchBytes);
    }
#pragma GCC unroll 1
    for (int c = 0; c < kBlockChunks; ++c, inputs += block.input_stride) {
      const auto* const x = reinterpret_cast<const Int8Record*>(inputs);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        I first[R], second[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          begin_dots<Fmt::kGroup, kZero>(first[r], second[r], x[r], shift);
        }
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          prefetch(w[t] + 64 * j + kPrefetchBytes);
          const I line = load_bits(w[t] + 64 * j);
          const I low = Fmt::kCodeBits == 4 ? low_nibbles(line) : line;
          if (Fmt::kCodeBits == 8) prefetch(w[t] + 64 * (j + 4) + kPrefetchBytes);
          const I high = Fmt::kCodeBits == 4 ? high_nibbles(line) : load_bits(w[t] + 64 * (j + 4));
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) {
            first[r] = dot<Fmt::kFullByte>(first[r], low, broadcast_bits(x[r].codes + 4 * j));
            second[r] = dot<Fmt::kFullByte>(second[r], high, broadcast_bits(x[r].codes + 16 + 4 * j));
          }
        }
        w[t] += kChunkBytes;
        F scale[2], min[2];
        load_scales<Fmt>(records[t], unit[t], c, d[t], dmin[t], scale, min);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          acc[r][t] = add_chunk<Fmt::kGroup, Fmt::kMin>(acc[r][t], first[r], second[r], scale, min, x[r]);
        }
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) records[t] += kBlockScaleBytes;
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) store(block.c[t] + r * block.c_stride, acc[r][t]);
  }
}

// R rows times one expanded unit.
template <class Fmt, int R>
TM_KERNEL void quantized_block(const Block& block, const ExpandedUnit& unit) {
  constexpr bool kZero = !Fmt::kMin && !(Fmt::kFullByte && kSignedFullByte);
  constexpr int kGroups = 32 / Fmt::kGroup;
  const Shift shift = make_shift(zero_shift(quant_format(block.job->segment->type)));
  F acc[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) acc[r] = zero();
  const std::byte* codes = unit.codes;
  const std::byte* inputs = block.inputs;
  for (int64_t chunk = 0; chunk < block.k / kChunkValues; ++chunk, inputs += block.input_stride) {
    const auto* const x = reinterpret_cast<const Int8Record*>(inputs);
    I first[R], second[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      begin_dots<Fmt::kGroup, kZero>(first[r], second[r], x[r], shift);
    }
    // One chain a row where both halves share a scale: there are chains enough, and it saves registers.
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      const I line = load_bits(codes);
      codes += unit.line_stride;
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const I codes_x = broadcast_bits(x[r].codes + 4 * j);
        I& sum = Fmt::kGroup == 16 && j >= 4 ? second[r] : first[r];
        sum = dot<Fmt::kFullByte>(sum, line, codes_x);
      }
    }
    F scale[2], min[2];
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) {
      scale[g] = load(unit.scales + (chunk * kGroups + g) * 4 * kLanes);
      if (Fmt::kMin) min[g] = load(unit.mins + (chunk * kGroups + g) * 4 * kLanes);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      acc[r] = add_chunk<Fmt::kGroup, Fmt::kMin>(acc[r], first[r], second[r], scale, min, x[r]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    if (r < block.rows) store(block.c[0] + r * block.c_stride, acc[r]);
  }
}

// --- drivers --------------------------------------------------------------------------------------------------------
// Rows [row, row + ...) of the job against units [unit, unit + T); units past the end repeat the last one, which writes
// the same values twice.
inline Block make_block(const TileJob& job, const std::byte* inputs, size_t input_stride, int64_t row, int64_t unit,
                        int count) {
  Block block;
  block.inputs = inputs;
  block.input_stride = input_stride;
  block.rows = 0;
  block.c_stride = job.c_stride;
  block.k = job.segment->k;
  block.job = &job;
  const int64_t units = (job.tile_end - job.tile_begin) * kUnits;
  for (int t = 0; t < count; ++t) {
    const int64_t u = unit + t < units ? unit + t : units - 1;
    block.unit[t] = static_cast<int>(u % kUnits);
    block.weights[t] = job.segment->tile(job.tile_begin + u / kUnits) + block.unit[t] * kUnitBytes;
    block.c[t] = job.c + (row - job.row_begin) * job.c_stride + u * kLanes;
  }
  return block;
}

// Rows in blocks of nearly equal size, none over rows_max; all units of the job for each block of rows, so that the
// job's weights stay in the second-level cache and a block's inputs in the first.
inline void run_blocks(const TileJob& job, const std::byte* inputs, size_t input_stride, const BlockFunction* functions,
                       const int* widths, int rows_max) {
  const int64_t units = (job.tile_end - job.tile_begin) * kUnits;
  const int64_t rows = job.row_end - job.row_begin;
  int64_t blocks = (rows + rows_max - 1) / rows_max;
  for (int64_t row = job.row_begin; row < job.row_end; --blocks) {
    const int64_t count = (job.row_end - row + blocks - 1) / blocks;
    const int width = widths[count - 1];
    for (int64_t unit = 0; unit < units; unit += width) {
      functions[count - 1](
          make_block(job, inputs + static_cast<size_t>(row) * input_stride, input_stride, row, unit, width));
    }
    row += count;
  }
}

template <class Fmt>
void run_quantized(const TileJob& job) {
  static constexpr BlockFunction kStream[] = {quantized_stream<Fmt, 1>, quantized_stream<Fmt, 2>,
                                              quantized_stream<Fmt, 3>};
  const LinearInputs& inputs = *job.inputs;
  const size_t stride = inputs.int8_chunk_stride();
  const int64_t units = (job.tile_end - job.tile_begin) * kUnits, rows = job.row_end - job.row_begin;
  if (rows <= kStreamRowsMax) {
    for (int64_t unit = 0; unit < units; unit += 4) {
      kStream[rows - 1](make_block(job, inputs.int8_record(job.row_begin, 0), stride, job.row_begin, unit, 4));
    }
    return;
  }
  using ExpandedFunction = void (*)(const Block&, const ExpandedUnit&);
  static constexpr ExpandedFunction kBlocks[] = {quantized_block<Fmt, 2>,  quantized_block<Fmt, 4>,
                                                 quantized_block<Fmt, 6>,  quantized_block<Fmt, 8>,
                                                 quantized_block<Fmt, 10>, quantized_block<Fmt, 12>};
  for (int64_t unit = 0; unit < units; ++unit) {
    const ExpandedUnit expanded = expand_unit<Fmt, false>(
        *job.segment, job.segment->tile(job.tile_begin + unit / kUnits), static_cast<int>(unit % kUnits), job.scratch);
    for (int64_t row = job.row_begin; row < job.row_end; row += inputs.int8_group) {
      // An even number of rows; the one past the end is computed from whatever lies there, and dropped.
      const int64_t count = std::min(inputs.int8_group, job.row_end - row);
      Block block = make_block(job, inputs.int8_record(row, 0), stride, row, unit, 1);
      block.rows = count;
      kBlocks[(count + 1) / 2 - 1](block, expanded);
    }
  }
}

// Groups of nearly equal size, none over kQuantizedRowsMax, even ones for quantized_block.
int64_t quantized_group(int64_t rows) {
  if (rows <= kStreamRowsMax) return rows;
  const int64_t groups = (rows + kQuantizedRowsMax - 1) / kQuantizedRowsMax;
  const int64_t group = (rows + groups - 1) / groups;
  return group + group % 2;
}

void run_quantized_any(const TileJob& job) {
  with_format(job.segment->type, [&job](auto format) { run_quantized<decltype(format)>(job); });
}

TM_KERNEL void gate_all(float* gate, const float* up, int64_t count, Activation activation) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const F x = load(gate + i);
    const F y = activation == Activation::kSilu ? vector_math::silu(x) : vector_math::gelu_tanh(x);
    store(gate + i, mul(y, load(up + i)));
  }
  for (; i < count; ++i) {
    const float y = activation == Activation::kSilu ? vector_math::silu(gate[i]) : vector_math::gelu_tanh(gate[i]);
    gate[i] = y * up[i];
  }
}
