// How keys and values lie inside a KV block, so that attention reads them as they are.
//
// A block is [kv_head][tile][K, V]. A tile holds tile_keys = min(page_size, 32) tokens; head_dim is padded to a
// multiple of 16 (dims), the padding is zero in every row that was written.
//   bf16  K [dims / 2][tile_keys][2]    V [tile_keys / 2][dims][2]   (page_size 1: both [dims])
//   fp32  K [dims][tile_keys]           V [tile_keys][dims]
// So K is the right operand of scores = q K^T and V that of out = p V, both in the order of the tile unit.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/backend.h"

namespace tokenmill {

inline constexpr int32_t kTileKeys = 32;  // keys of an absolute tile: attention's unit at every page_size

struct KvLayout {
  int32_t page_size = 0, tile_keys = 0, kv_heads = 0, head_dim = 0;
  int32_t dims = 0;  // head_dim padded to a multiple of 16
  DType dtype = DType::kBF16;

  KvLayout(int32_t kv_heads_, int32_t head_dim_, int32_t page_size_, DType dtype_)
      : page_size(page_size_),
        tile_keys(std::min(page_size_, kTileKeys)),
        kv_heads(kv_heads_),
        head_dim(head_dim_),
        dims((head_dim_ + 15) / 16 * 16),
        dtype(dtype_) {}
  explicit KvLayout(const KvLayer& kv) : KvLayout(kv.kv_heads, kv.head_dim, kv.page_size, kv.dtype) {}

  int64_t tile_values() const { return int64_t{tile_keys} * dims; }  // of K or of V
  int64_t tile_bytes() const { return tile_values() * static_cast<int64_t>(size_of(dtype)); }
  int64_t head_bytes() const { return page_size / tile_keys * 2 * tile_bytes(); }
  int64_t block_bytes() const { return kv_heads * head_bytes(); }
  // Byte offset inside the block of the K tile that holds row `row` of a head; V follows after tile_bytes().
  int64_t tile_offset(int32_t kv_head, int32_t row) const {
    return kv_head * head_bytes() + row / tile_keys * 2 * tile_bytes();
  }
};

// Copies rows [source_row, source_row + count) of a tile (layout of source_keys rows) to rows from target_row of a
// tile of target_keys rows. Row numbers are inside the tile. K and V as above.
void copy_k_rows(const KvLayout& layout, const std::byte* source, int32_t source_keys, int32_t source_row,
                 std::byte* target, int32_t target_keys, int32_t target_row, int32_t count);
void copy_v_rows(const KvLayout& layout, const std::byte* source, int32_t source_keys, int32_t source_row,
                 std::byte* target, int32_t target_keys, int32_t target_row, int32_t count);

// Writes one token's key or value (head_dim fp32 values) to row `row` of its tile, rounded to the layout's type.
void write_k_row(const KvLayout& layout, const float* values, std::byte* tile, int32_t row);
void write_v_row(const KvLayout& layout, const float* values, std::byte* tile, int32_t row);

}  // namespace tokenmill
