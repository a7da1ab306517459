// The inner loops of attention over one absolute tile of 32 keys, one set an instruction set, all with the same bits.
//
// Both products follow the canonical order of a dot product (the tile unit's): per 32 values of the contracted
// dimension one FMA chain from zero over the even and one over the odd elements, the two summed, that sum added to the
// accumulator. Scores contract over head_dim, values over the tile's 32 keys, whose probabilities are rounded to bf16
// where the KV is bf16.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"
#include "ops/cpu/cpu_features.h"
#include "ops/cpu/kv_layout.h"

namespace tokenmill {

// Rows are (query, head of the group): `group` consecutive rows share a query, queries have consecutive positions.
struct SoftmaxTile {
  int32_t tile_begin = 0;      // absolute position of the tile's first key
  int32_t first_position = 0;  // absolute position of row 0's query
  int32_t group = 1;
  int32_t window = 0;  // 0: none
  float scale = 1, softcap = 0;
};

struct AttentionKernels {
  // scores[r][key] = sum over dim of q[r][dim] * k[dim][key]; q [rows, dims] fp32 values (bf16-rounded where KV is
  // bf16), scores [rows, 32], k a tile of 32 keys. head_dim is even.
  void (*scores)(const float* q, int32_t dims, int32_t head_dim, int32_t rows, const std::byte* k, float* scores);

  // One step of the online softmax (arXiv:1805.02867). In: scores; maximum and sum so far. Out: probabilities relative
  // to the new maximum in place of the scores; maximum, sum; rescale = exp(old maximum - new maximum). Every row sees
  // at least one key of the tile. The three arrays have 16 values of room past `rows`.
  void (*softmax)(const SoftmaxTile& tile, int32_t rows, float* scores, float* maximum, float* sum, float* rescale);

  // out[r][dim] = out[r][dim] * rescale[r] + sum over key of probabilities[r][key] * v[key][dim]; out [rows, dims].
  void (*values)(const float* probabilities, int32_t dims, int32_t rows, const float* rescale, const std::byte* v,
                 float* out);
};

const AttentionKernels& attention_kernels_avx2(DType kv_dtype);
const AttentionKernels& attention_kernels_avx512(DType kv_dtype);

}  // namespace tokenmill
