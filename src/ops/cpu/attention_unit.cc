#include "ops/cpu/attention_unit.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "ops/cpu/vector_math.h"

namespace tokenmill {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// The worker's scratch: [queries][scores][rescale][K tile][V tile][state of a piece][state of the total]
struct Scratch {
  float* queries = nullptr;  // [rows, dims]
  float* scores = nullptr;   // [rows, 32]
  float* rescale = nullptr;
  std::byte* k = nullptr;  // one tile of 32 keys each
  std::byte* v = nullptr;
  SoftmaxState piece, total;

  Scratch(std::byte* memory, const KvLayout& layout, int64_t rows) {
    float* next = reinterpret_cast<float*>(memory);
    const auto take = [&next](int64_t floats) {
      float* const taken = next;
      next += (floats + 15) / 16 * 16;
      return taken;
    };
    queries = take(rows * layout.dims);
    scores = take(rows * kTileKeys);
    rescale = take(padded_rows(rows));
    k = reinterpret_cast<std::byte*>(take(kTileKeys * layout.dims));
    v = reinterpret_cast<std::byte*>(take(kTileKeys * layout.dims));
    piece = state_at(take(partial_floats(rows, layout.dims)), rows, layout.dims);
    total = state_at(take(partial_floats(rows, layout.dims)), rows, layout.dims);
    bytes = static_cast<size_t>(reinterpret_cast<std::byte*>(next) - memory);
  }
  size_t bytes = 0;
};

int32_t group_of(const UnitContext& context) { return context.args.q_heads / context.layout.kv_heads; }
int32_t rows_of(const UnitContext& context) { return context.unit.num_queries * group_of(context); }

void clear(const SoftmaxState& state, int32_t rows, int32_t dims) {
  std::fill(state.maximum, state.maximum + padded_rows(rows), kMinusInfinity);
  std::fill(state.sum, state.sum + padded_rows(rows), 0.0f);
  std::fill(state.out, state.out + int64_t{rows} * dims, 0.0f);
}

struct TileView {
  const std::byte* k = nullptr;
  const std::byte* v = nullptr;
};

// The tile of 32 keys from absolute position `begin`; keys outside [first_key, end_key) read as zero, whatever the pool
// holds there. A block of 32 or more tokens is read in place; smaller blocks and ragged tiles go through scratch.
TileView fetch_tile(const UnitContext& context, const Scratch& scratch, int32_t begin, int32_t first_key,
                    int32_t end_key) {
  const KvLayout& layout = context.layout;
  const KvLayer& kv = context.args.kv;
  const auto tile_at = [&](int32_t position) {
    const int64_t block = context.blocks[position / layout.page_size];
    return kv.base + block * kv.block_bytes + layout.tile_offset(context.unit.kv_head, position % layout.page_size);
  };
  const int32_t from = std::max(begin, first_key), to = std::min(begin + kTileKeys, end_key);
  const bool ragged = from > begin || to < begin + kTileKeys;
  if (layout.tile_keys == kTileKeys && !ragged) {
    const std::byte* const tile = tile_at(begin);
    return {tile, tile + layout.tile_bytes()};
  }
  if (ragged) {
    const size_t bytes = static_cast<size_t>(kTileKeys) * static_cast<size_t>(layout.dims) * size_of(layout.dtype);
    std::memset(scratch.k, 0, bytes);
    std::memset(scratch.v, 0, bytes);
  }
  for (int32_t position = from; position < to;) {
    const int32_t row = position % layout.tile_keys;
    const int32_t count = std::min(layout.tile_keys - row, to - position);
    const std::byte* const tile = tile_at(position);
    copy_k_rows(layout, tile, layout.tile_keys, row, scratch.k, kTileKeys, position - begin, count);
    copy_v_rows(layout, tile + layout.tile_bytes(), layout.tile_keys, row, scratch.v, kTileKeys, position - begin,
                count);
    position += count;
  }
  return {scratch.k, scratch.v};
}

}  // namespace

SoftmaxState state_at(float* memory, int64_t rows, int64_t dims) {
  (void)dims;
  return {memory, memory + padded_rows(rows), memory + 2 * padded_rows(rows)};
}

size_t unit_scratch_bytes(const KvLayout& layout, int32_t group, const AttentionSchedule& schedule) {
  int32_t queries = 1;
  for (const AttentionUnit& unit : schedule.units) queries = std::max(queries, unit.num_queries);
  alignas(64) std::byte origin[64];
  return Scratch(origin, layout, int64_t{queries} * group).bytes;
}

void load_queries(const UnitContext& context) {
  const int32_t head_dim = context.layout.head_dim, dims = context.layout.dims, group = group_of(context);
  const Scratch scratch(context.scratch, context.layout, rows_of(context));
  float* target = scratch.queries;
  for (int32_t i = 0; i < context.unit.num_queries; ++i) {
    const float* const token = context.args.q.row<float>(context.row.token_begin + context.unit.first_query + i);
    for (int32_t h = 0; h < group; ++h, target += dims) {
      const float* const head = token + int64_t{context.unit.kv_head * group + h} * head_dim;
      if (context.layout.dtype == DType::kF32) {
        std::copy(head, head + head_dim, target);
      } else {
        for (int32_t d = 0; d < head_dim; ++d) target[d] = bf16_to_f32(f32_to_bf16(head[d]));
      }
      std::fill(target + head_dim, target + dims, 0.0f);
    }
  }
}

void attend_piece(const UnitContext& context, int32_t piece, const SoftmaxState& state) {
  const AttentionUnit& unit = context.unit;
  const int32_t group = group_of(context), rows = rows_of(context), dims = context.layout.dims;
  const int32_t window = context.args.window;
  const Scratch scratch(context.scratch, context.layout, rows);
  clear(state, rows, dims);

  const int32_t first_position = context.row.kv_len - context.row.q_len + unit.first_query;
  const int32_t last_position = first_position + unit.num_queries - 1;
  const int32_t first_key = window > 0 ? std::max(0, first_position - window + 1) : 0;
  const int32_t begin = std::max(piece * kPieceKeys, first_key / kTileKeys * kTileKeys);
  const int32_t end = std::min((piece + 1) * kPieceKeys, last_position + 1);
  for (int32_t tile_begin = begin; tile_begin < end; tile_begin += kTileKeys) {
    // Queries that see no key of this tile are left out of it, so that their state stays as it is.
    const int32_t first_query = std::max(0, tile_begin - first_position);
    const int32_t end_query = window > 0
                                  ? std::min(unit.num_queries, tile_begin + kTileKeys - 1 + window - first_position)
                                  : unit.num_queries;
    if (first_query >= end_query) continue;
    const TileView tile = fetch_tile(context, scratch, tile_begin, first_key, last_position + 1);
    const int32_t first_row = first_query * group, num_rows = (end_query - first_query) * group;
    float* const scores = scratch.scores + int64_t{first_row} * kTileKeys;
    context.kernels.scores(scratch.queries + int64_t{first_row} * dims, dims, context.layout.head_dim, num_rows, tile.k,
                           scores);
    const SoftmaxTile softmax = {.tile_begin = tile_begin,
                                 .first_position = first_position + first_query,
                                 .group = group,
                                 .window = window,
                                 .scale = context.args.scale,
                                 .softcap = context.args.softcap};
    context.kernels.softmax(softmax, num_rows, scores, state.maximum + first_row, state.sum + first_row,
                            scratch.rescale + first_row);
    context.kernels.values(scores, dims, num_rows, scratch.rescale + first_row, tile.v,
                           state.out + int64_t{first_row} * dims);
  }
}

// AVX2 on every processor: once in 512 keys.
TM_TARGET_AVX2 void merge_piece(int32_t rows, int32_t dims, const SoftmaxState& piece, const SoftmaxState& total) {
  for (int32_t r = 0; r < rows; ++r) {
    if (piece.maximum[r] == kMinusInfinity && piece.sum[r] == 0) continue;
    const float* const from = piece.out + int64_t{r} * dims;
    float* const to = total.out + int64_t{r} * dims;
    if (total.maximum[r] == kMinusInfinity && total.sum[r] == 0) {
      total.maximum[r] = piece.maximum[r];
      total.sum[r] = piece.sum[r];
      std::copy(from, from + dims, to);
      continue;
    }
    const float peak = std::max(total.maximum[r], piece.maximum[r]);
    const float old_weight = vector_math::exp(total.maximum[r] - peak);
    const float new_weight = vector_math::exp(piece.maximum[r] - peak);
    total.maximum[r] = peak;
    total.sum[r] = total.sum[r] * old_weight + piece.sum[r] * new_weight;
    for (int32_t d = 0; d < dims; d += 8) {
      const __m256 old_part = _mm256_mul_ps(_mm256_loadu_ps(to + d), _mm256_set1_ps(old_weight));
      const __m256 new_part = _mm256_mul_ps(_mm256_loadu_ps(from + d), _mm256_set1_ps(new_weight));
      _mm256_storeu_ps(to + d, _mm256_add_ps(old_part, new_part));
    }
  }
}

void write_out(const UnitContext& context, const SoftmaxState& state) {
  const int32_t head_dim = context.layout.head_dim, dims = context.layout.dims, group = group_of(context);
  int32_t r = 0;
  for (int32_t i = 0; i < context.unit.num_queries; ++i) {
    float* const token = context.args.out.row<float>(context.row.token_begin + context.unit.first_query + i);
    for (int32_t h = 0; h < group; ++h, ++r) {
      float* const head = token + int64_t{context.unit.kv_head * group + h} * head_dim;
      const float* const values = state.out + int64_t{r} * dims;
      const float inverse = 1.0f / state.sum[r];
      for (int32_t d = 0; d < head_dim; ++d) head[d] = values[d] * inverse;
    }
  }
}

void attend_unit(const UnitContext& context) {
  const int32_t rows = rows_of(context), dims = context.layout.dims;
  const Scratch scratch(context.scratch, context.layout, rows);
  load_queries(context);
  const AttentionUnit& unit = context.unit;
  attend_piece(context, unit.first_piece, scratch.total);
  for (int32_t piece = unit.first_piece + 1; piece < unit.first_piece + unit.num_pieces; ++piece) {
    attend_piece(context, piece, scratch.piece);
    merge_piece(rows, dims, scratch.piece, scratch.total);
  }
  write_out(context, scratch.total);
}

}  // namespace tokenmill
