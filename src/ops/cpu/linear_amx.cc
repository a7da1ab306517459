// The kernels of linear.h for the tile unit: bf16 and int8 products of several rows; all else is AVX-512's.
//
// A tile instruction on C [16][16], A [16][k], B [k / 4 or k / 2][16 columns] is exactly one chunk of the canonical
// order. Rows past the end of the inputs are multiplied too (the inputs' scratch has room for a whole tile) and
// dropped.
#include <immintrin.h>

#include <bit>

#include "base/check.h"
#include "ops/cpu/linear.h"
#include "ops/cpu/vector_math.h"

#define TM_TARGET_KERNEL "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,amx-tile,amx-bf16,amx-int8"
#define TM_KERNEL __attribute__((target(TM_TARGET_KERNEL)))
#define TM_INLINE __attribute__((target(TM_TARGET_KERNEL), always_inline)) inline

// g++ 12's own avx512fintrin.h warns of the undefined operands it uses on purpose (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

namespace tokenmill {
namespace {

#include "ops/cpu/linear_vectors_avx512.h"

#include "ops/cpu/linear_expand.h"

constexpr int64_t kTileRowsMin = 4;       // bf16: fewer rows run on the vector kernels
constexpr int64_t kQuantizedRowsMin = 8;  // expanding a tile must pay
constexpr int64_t kTileInputRows = 16;
// K of one pass over C, so that the inputs of 32 rows stay in the first-level cache.
constexpr int64_t kPassChunks = 16;

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes_per_row[16] = {};
  uint8_t rows[16] = {};
};

// C: tiles 0 to 3, A: 4 and 5, B: 6 and 7.
TM_KERNEL void load_config(int input_bytes, int weight_rows) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.bytes_per_row[tile] = static_cast<uint16_t>(tile == 4 || tile == 5 ? input_bytes : 64);
    config.rows[tile] = static_cast<uint8_t>(tile >= 6 ? weight_rows : 16);
  }
  // g++ 12's _tile_loadconfig claims to read 8 bytes only, which lets the stores above be dropped.
  asm volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
}

// The tile intrinsics of g++ 12 do not all tell the compiler that they read memory.
TM_INLINE void memory_barrier() { asm volatile("" ::: "memory"); }

// --- bf16 -----------------------------------------------------------------------------------------------------------
// One pass of K: 32 rows of inputs times two tiles of weights. C is loaded first unless this is the first pass.
TM_KERNEL void bfloat16_pass_2x2(const std::byte* inputs, size_t stride, const std::byte* w0, const std::byte* w1,
                                 int64_t chunks, bool first, float* c, int64_t c_stride) {
  const size_t c_bytes = static_cast<size_t>(c_stride) * sizeof(float);
  float* const c_low = c + 16 * c_stride;
  const std::byte* const inputs_low = inputs + 16 * stride;
  memory_barrier();
  if (first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, c, c_bytes);
    _tile_loadd(1, c + 16, c_bytes);
    _tile_loadd(2, c_low, c_bytes);
    _tile_loadd(3, c_low + 16, c_bytes);
  }
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    _tile_loadd(6, w0 + 1024 * chunk, 64);
    _tile_loadd(4, inputs + 64 * chunk, stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, w1 + 1024 * chunk, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, inputs_low + 64 * chunk, stride);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, c_bytes);
  _tile_stored(1, c + 16, c_bytes);
  _tile_stored(2, c_low, c_bytes);
  _tile_stored(3, c_low + 16, c_bytes);
  memory_barrier();
}

TM_INLINE void prefetch_tile(const std::byte* tile) {
#pragma GCC unroll 16
  for (int line = 0; line < 16; ++line) prefetch(tile + 64 * line);
}

// Up to 16 rows times four tiles of weights over all of K: four streams, bound by memory.
TM_KERNEL void bfloat16_stream_1x4(const std::byte* inputs, size_t stride, const std::byte* const* w, int64_t chunks,
                                   float* const* c, int64_t c_stride) {
  const size_t c_bytes = static_cast<size_t>(c_stride) * sizeof(float);
  memory_barrier();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t offset = 1024 * chunk;
    for (int t = 0; t < 4; ++t) prefetch_tile(w[t] + offset + 2048);
    _tile_loadd(4, inputs + 64 * chunk, stride);
    _tile_loadd(6, w[0] + offset, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, w[1] + offset, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(6, w[2] + offset, 64);
    _tile_dpbf16ps(2, 4, 6);
    _tile_loadd(7, w[3] + offset, 64);
    _tile_dpbf16ps(3, 4, 7);
  }
  _tile_stored(0, c[0], c_bytes);
  _tile_stored(1, c[1], c_bytes);
  _tile_stored(2, c[2], c_bytes);
  _tile_stored(3, c[3], c_bytes);
  memory_barrier();
}

TM_KERNEL void run_bfloat16(const TileJob& job) {
  const LinearInputs& inputs = *job.inputs;
  if (inputs.bfloat16 == nullptr) return linear_kernels_avx512().bfloat16(job);
  const WeightSegment& segment = *job.segment;
  const int64_t tiles = job.tile_end - job.tile_begin, chunks = segment.k / kChunkValues;
  load_config(64, 16);
  int64_t row = job.row_begin;
  for (; job.row_end - row > kTileInputRows && tiles > 1; row += 2 * kTileInputRows) {
    const std::byte* const x = inputs.bfloat16 + static_cast<size_t>(row) * inputs.bfloat16_stride;
    float* const c = job.c + (row - job.row_begin) * job.c_stride;
    for (int64_t begin = 0; begin < chunks; begin += kPassChunks) {
      const int64_t count = std::min(kPassChunks, chunks - begin);
      for (int64_t tile = 0; tile < tiles; tile += 2) {
        // An odd last tile pairs with the one before it; as each pass adds to C, the pair must not overlap another.
        if (tile + 1 == tiles) break;
        bfloat16_pass_2x2(x + 64 * begin, inputs.bfloat16_stride, segment.tile(job.tile_begin + tile) + 1024 * begin,
                          segment.tile(job.tile_begin + tile + 1) + 1024 * begin, count, begin == 0, c + 16 * tile,
                          job.c_stride);
      }
    }
    if (tiles % 2 == 0) continue;
    for (int64_t half = 0; half < 2 && row + half * kTileInputRows < job.row_end; ++half) {
      const std::byte* const w = segment.tile(job.tile_end - 1);
      const std::byte* const same[4] = {w, w, w, w};
      float* const target = c + half * kTileInputRows * job.c_stride + 16 * (tiles - 1);
      float* const targets[4] = {target, target, target, target};
      bfloat16_stream_1x4(x + static_cast<size_t>(half * kTileInputRows) * inputs.bfloat16_stride,
                          inputs.bfloat16_stride, same, chunks, targets, job.c_stride);
    }
  }
  for (; row < job.row_end; row += kTileInputRows) {
    const std::byte* const x = inputs.bfloat16 + static_cast<size_t>(row) * inputs.bfloat16_stride;
    for (int64_t tile = 0; tile < tiles; tile += 4) {
      const std::byte* w[4];
      float* c[4];
      for (int64_t t = 0; t < 4; ++t) {  // past the end: the last tile again, with the same result
        const int64_t index = std::min(tile + t, tiles - 1);
        w[t] = segment.tile(job.tile_begin + index);
        c[t] = job.c + (row - job.row_begin) * job.c_stride + 16 * index;
      }
      bfloat16_stream_1x4(x, inputs.bfloat16_stride, w, chunks, c, job.c_stride);
    }
  }
  _tile_release();
}

// --- quantised ------------------------------------------------------------------------------------------------------
// The integer dot products of four groups (two of K = 16 in one chunk), or fewer, each to its own 1 KiB of `dots`.
// `inputs`: 16 records of a chunk, then those of the next.
template <int kGroup>
TM_INLINE void group_dots(const std::byte* inputs, const std::byte* codes, int64_t groups, std::byte* dots) {
  constexpr int kCodeBytes = kGroup * 16;
  constexpr int kOdd = kGroup == 16 ? 16 : 1024, kPair = kGroup == 16 ? 1024 : 2048;  // input offsets of groups 1 and 2
  _tile_loadd(4, inputs, 64);
  _tile_loadd(6, codes, 64);
  _tile_zero(0);
  _tile_dpbssd(0, 4, 6);
  _tile_stored(0, dots, 64);
  if (groups > 1) {
    _tile_loadd(5, inputs + kOdd, 64);
    _tile_loadd(7, codes + kCodeBytes, 64);
    _tile_zero(1);
    _tile_dpbssd(1, 5, 7);
    _tile_stored(1, dots + 1024, 64);
  }
  if (groups > 2) {
    _tile_loadd(4, inputs + kPair, 64);
    _tile_loadd(6, codes + 2 * kCodeBytes, 64);
    _tile_zero(2);
    _tile_dpbssd(2, 4, 6);
    _tile_stored(2, dots + 2048, 64);
  }
  if (groups > 3) {
    _tile_loadd(5, inputs + kPair + kOdd, 64);
    _tile_loadd(7, codes + 3 * kCodeBytes, 64);
    _tile_zero(3);
    _tile_dpbssd(3, 5, 7);
    _tile_stored(3, dots + 3072, 64);
  }
}

// 16 rows times one expanded tile; the first `rows` of them are stored.
template <class Fmt>
TM_KERNEL void quantized_tile(const std::byte* inputs, const ExpandedUnit& unit, int64_t k, int64_t rows, float* c,
                              int64_t c_stride, std::byte* dots) {
  const int64_t groups = k / Fmt::kGroup;
  F acc[16];
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) acc[r] = zero();
  for (int64_t begin = 0; begin < groups; begin += 4) {
    const int64_t count = std::min<int64_t>(4, groups - begin);
    memory_barrier();
    group_dots<Fmt::kGroup>(inputs + begin * Fmt::kGroup * 32, unit.codes + begin * Fmt::kGroup * 16, count, dots);
    memory_barrier();
    for (int64_t g = 0; g < count; ++g) {
      const int64_t group = begin + g;
      const F scale = load(unit.scales + 64 * group);
      const F min = Fmt::kMin ? load(unit.mins + 64 * group) : zero();
      const auto* const x = reinterpret_cast<const Int8Record*>(inputs + group * Fmt::kGroup / 32 * 1024);
#pragma GCC unroll 16
      for (int r = 0; r < 16; ++r) {
        const F dot = to_float(load_bits(dots + 1024 * g + 64 * r));
        acc[r] = fmadd(dot, mul(broadcast(&x[r].scale), scale), acc[r]);
        if (!Fmt::kMin) continue;
        const float* const sum = Fmt::kGroup == 32 ? &x[r].scaled_sum : &x[r].scaled_sums16[group % 2];
        acc[r] = fmadd(broadcast(sum), min, acc[r]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) {
    if (r < rows) store(c + r * c_stride, acc[r]);
  }
}

template <class Fmt>
TM_KERNEL void run_format(const TileJob& job) {
  const LinearInputs& inputs = *job.inputs;
  const size_t expanded_bytes = (linear_scratch_bytes(inputs.k) - 8192) / 64 * 64;
  load_config(Fmt::kGroup, Fmt::kGroup / 4);
  for (int64_t tile = job.tile_begin; tile < job.tile_end; ++tile) {
    const ExpandedUnit unit = expand_unit<Fmt, true>(*job.segment, job.segment->tile(tile), 0, job.scratch);
    for (int64_t row = job.row_begin; row < job.row_end; row += kTileInputRows) {
      quantized_tile<Fmt>(inputs.int8_record(row, 0), unit, job.segment->k, job.row_end - row,
                          job.c + (row - job.row_begin) * job.c_stride + 16 * (tile - job.tile_begin), job.c_stride,
                          job.scratch + expanded_bytes);
    }
  }
  _tile_release();
}

void run_quantized(const TileJob& job) {
  if (job.inputs->int8_group != kTileInputRows) return linear_kernels_avx512().quantized(job);
  with_format(job.segment->type, [&job](auto format) { run_format<decltype(format)>(job); });
}

int64_t quantized_group(int64_t rows) {
  return rows < kQuantizedRowsMin ? linear_kernels_avx512().quantized_group(rows) : kTileInputRows;
}

}  // namespace

const LinearKernels& linear_kernels_amx() {
  static const LinearKernels kernels = {linear_kernels_avx512().float32, run_bfloat16,    run_quantized,
                                        linear_kernels_avx512().gate,    quantized_group, kTileRowsMin};
  return kernels;
}

}  // namespace tokenmill
