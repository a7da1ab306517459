// Matrix products of the CPU backend: out[m][n] = sum over k of input[m][k] * weight[n][k].
//
// The canonical orders. Every kernel (AVX2, AVX-512, AMX; one row or many; any split of the work over threads) performs
// exactly these fp32 operations for one output, so all of them give the same bits. fma rounds once; denormals are
// flushed in and out (float_mode.h); `+` and `*` round.
//
//   fp32        acc = 0;  for k ascending: acc = fma(x[k], w[k], acc)
//   bf16        x rounded to bf16 (nearest even), K padded with zeros to a multiple of 32; acc = 0; for each 32 k:
//                   even = odd = 0;  for j in 0 .. 15: even = fma(x[2j], w[2j], even); odd = fma(x[2j+1], w[2j+1], odd)
//                   acc = acc + (even + odd)
//               which is the order of the tile unit's bf16 product.
//   quantised   x quantised to int8 for each 32 k: a = max |x|, scale_x = a / 127, code = round_to_even(x * (127 / a));
//               all 0 where a < kTinyGroup. acc = 0; for each 32 k, for each group of the weight in it (one, or two of
//               16):
//                   acc = fma(float(sum of code_x * (code_w - zero)), scale_x * scale_w, acc)       the sum is exact
//                   acc = fma(scale_x * float(sum of code_x), min_w, acc)                           formats with
//                   minimums
//               scale_w = d * scale and min_w = -(dmin * min), or d and m, as ops/dequantize.h has them.
//   fine_inputs (quantised weights): the same for what the codes leave of x, fma(-scale_x, code, x), quantised by the
//               same rule; the two accs are added. Nothing rounds the head's result again, so its inputs' rounding
//               would be the largest error of a quantised model's logits.
//   then        acc + bias where there is one, and out + that with add_to_out.
//   gated       activation(gate) * up, the activation by vector_math.h.
//
// NaN and infinity in a row reach that row's outputs and no other row's.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/backend.h"
#include "ops/cpu/cpu_features.h"
#include "ops/cpu/packed_weight.h"

namespace tokenmill {

// A group of inputs below this is taken as zeros: 127 / a would overflow.
inline constexpr float kTinyGroup = 1e-30f;

// 32 quantised values of one row and all that the kernels need of them: one cache line.
struct Int8Record {
  int8_t codes[32];
  float scale;
  int32_t minus_sum;        // of the codes
  float scaled_sum;         // scale * sum
  int32_t minus_sums16[2];  // the same of each half
  float scaled_sums16[2];
  int32_t unused;
};
static_assert(sizeof(Int8Record) == 64);

// The rows of x, normed, in the forms the segments' kernels take. Strides in bytes, odd numbers of cache lines, so that
// one column of many rows does not fall into one cache set. Forms that no segment needs are null.
struct LinearInputs {
  int64_t rows = 0, k = 0;
  std::byte* float32 = nullptr;   // [rows][k] fp32
  std::byte* rounded = nullptr;   // [rows][k to 32] fp32 values rounded to bf16: vector kernels
  std::byte* bfloat16 = nullptr;  // [rows][k to 32] bf16: tile kernels
  std::byte* int8 = nullptr;      // [rows / int8_group][chunk][int8_group] of Int8Record
  size_t float32_stride = 0, rounded_stride = 0, bfloat16_stride = 0;
  int64_t int8_group = 1;  // rows side by side, those of one kernel call
  bool fine = false;       // int8 only: x's row i is row 2i here, and what its codes leave is row 2i + 1

  int64_t chunks() const { return (k + kChunkValues - 1) / kChunkValues; }
  size_t int8_chunk_stride() const { return static_cast<size_t>(int8_group) * sizeof(Int8Record); }
  std::byte* int8_record(int64_t row, int64_t chunk) const {
    return int8 + static_cast<size_t>((row / int8_group * chunks() + chunk) * int8_group + row % int8_group) *
                      sizeof(Int8Record);
  }
};

// One piece of a product: tiles [tile_begin, tile_end) of a segment times rows [row_begin, row_end) of the inputs, to
// c[(row - row_begin) * c_stride + (tile - tile_begin) * 16 + lane].
struct TileJob {
  const WeightSegment* segment = nullptr;
  const LinearInputs* inputs = nullptr;
  int64_t tile_begin = 0, tile_end = 0, row_begin = 0, row_end = 0;
  float* c = nullptr;
  int64_t c_stride = 0;
  std::byte* scratch = nullptr;  // linear_scratch_bytes(k)
};

// Scratch of one job: one tile's codes as bytes and its scales and minimums as fp32.
inline size_t linear_scratch_bytes(int64_t k) {
  const size_t chunks = static_cast<size_t>((k + kChunkValues - 1) / kChunkValues);
  return chunks * (512 + 4 * 64) + 64 * 1024;
}

struct LinearKernels {
  void (*float32)(const TileJob& job);
  void (*bfloat16)(const TileJob& job);
  void (*quantized)(const TileJob& job);
  // gate[i] = activation(gate[i]) * up[i], i < count.
  void (*gate)(float* gate, const float* up, int64_t count, Activation activation);
  // How many rows quantized wants side by side (LinearInputs::int8_group) in a product of so many. A job's rows begin
  // at a multiple of it.
  int64_t (*quantized_group)(int64_t rows);
  // From this many rows on bfloat16 wants LinearInputs::bfloat16 instead of rounded; 0: never.
  int64_t tile_rows_min;
};

const LinearKernels& linear_kernels_avx2();
const LinearKernels& linear_kernels_avx512();  // quantized needs VNNI; without it avx2's is put there
const LinearKernels& linear_kernels_amx();
const LinearKernels& linear_kernels(Isa isa);

// linear_inputs.cc: row `row` of x, normed if `norm`, into every form of `inputs` that is not null. row_scratch [k].
void pack_input_row(const float* x, const Norm* norm, int64_t row, const LinearInputs& inputs, float* row_scratch);

}  // namespace tokenmill
