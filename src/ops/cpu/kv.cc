// Writing and copying KV rows; copy_blocks and kv_block_bytes.
#include <cstring>

#include "base/check.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/kv_layout.h"

namespace tokenmill {
namespace {

// The index of (row, dim) in a V tile of `keys` rows, in elements.
int64_t v_index(DType dtype, int64_t keys, int64_t dims, int64_t row, int64_t dim) {
  if (dtype == DType::kF32) return row * dims + dim;
  return keys == 1 ? dim : (row / 2 * dims + dim) * 2 + row % 2;
}

// One V row between tiles whose rows may be interleaved in pairs or not.
void copy_v_row_bf16(const uint16_t* source, int64_t source_step, uint16_t* target, int64_t target_step, int64_t dims) {
  for (int64_t dim = 0; dim < dims; ++dim) target[dim * target_step] = source[dim * source_step];
}

}  // namespace

void copy_k_rows(const KvLayout& layout, const std::byte* source, int32_t source_keys, int32_t source_row,
                 std::byte* target, int32_t target_keys, int32_t target_row, int32_t count) {
  // fp32: `dims` lines of keys of 4 bytes; bf16: dims / 2 lines of keys, each a pair of 2 bytes.
  const int64_t lines = layout.dtype == DType::kF32 ? layout.dims : layout.dims / 2;
  const auto* const from = reinterpret_cast<const uint32_t*>(source) + source_row;
  auto* const to = reinterpret_cast<uint32_t*>(target) + target_row;
  if (count == 1) {
    for (int64_t line = 0; line < lines; ++line) to[line * target_keys] = from[line * source_keys];
    return;
  }
  for (int64_t line = 0; line < lines; ++line) {
    std::memcpy(to + line * target_keys, from + line * source_keys, static_cast<size_t>(count) * sizeof(uint32_t));
  }
}

void copy_v_rows(const KvLayout& layout, const std::byte* source, int32_t source_keys, int32_t source_row,
                 std::byte* target, int32_t target_keys, int32_t target_row, int32_t count) {
  const int64_t dims = layout.dims;
  if (layout.dtype == DType::kF32) {
    std::memcpy(reinterpret_cast<float*>(target) + target_row * dims,
                reinterpret_cast<const float*>(source) + source_row * dims,
                static_cast<size_t>(count * dims) * sizeof(float));
    return;
  }
  const auto* const from = reinterpret_cast<const uint16_t*>(source);
  auto* const to = reinterpret_cast<uint16_t*>(target);
  for (int32_t row = 0; row < count;) {
    const int64_t source_index = v_index(layout.dtype, source_keys, dims, source_row + row, 0);
    const int64_t target_index = v_index(layout.dtype, target_keys, dims, target_row + row, 0);
    const bool whole_pair = row + 2 <= count && source_keys > 1 && target_keys > 1 && (source_row + row) % 2 == 0 &&
                            (target_row + row) % 2 == 0;
    if (whole_pair) {
      std::memcpy(to + target_index, from + source_index, static_cast<size_t>(dims) * 2 * sizeof(uint16_t));
      row += 2;
    } else {
      copy_v_row_bf16(from + source_index, source_keys > 1 ? 2 : 1, to + target_index, target_keys > 1 ? 2 : 1, dims);
      row += 1;
    }
  }
}

void write_k_row(const KvLayout& layout, const float* values, std::byte* tile, int32_t row) {
  const int64_t keys = layout.tile_keys;
  if (layout.dtype == DType::kF32) {
    auto* const target = reinterpret_cast<float*>(tile) + row;
    for (int64_t dim = 0; dim < layout.head_dim; ++dim) target[dim * keys] = values[dim];
    for (int64_t dim = layout.head_dim; dim < layout.dims; ++dim) target[dim * keys] = 0;
    return;
  }
  auto* const target = reinterpret_cast<uint32_t*>(tile) + row;
  const int64_t pairs = layout.head_dim / 2;
  for (int64_t pair = 0; pair < pairs; ++pair) {
    target[pair * keys] = f32_to_bf16(values[2 * pair]) | static_cast<uint32_t>(f32_to_bf16(values[2 * pair + 1]))
                                                              << 16;
  }
  for (int64_t pair = pairs; pair < layout.dims / 2; ++pair) target[pair * keys] = 0;
}

void write_v_row(const KvLayout& layout, const float* values, std::byte* tile, int32_t row) {
  const int64_t begin = v_index(layout.dtype, layout.tile_keys, layout.dims, row, 0);
  if (layout.dtype == DType::kF32) {
    auto* const target = reinterpret_cast<float*>(tile) + begin;
    std::memcpy(target, values, static_cast<size_t>(layout.head_dim) * sizeof(float));
    std::fill(target + layout.head_dim, target + layout.dims, 0.0f);
    return;
  }
  const int64_t step = layout.tile_keys > 1 ? 2 : 1;
  auto* const target = reinterpret_cast<uint16_t*>(tile) + begin;
  for (int64_t dim = 0; dim < layout.head_dim; ++dim) target[dim * step] = f32_to_bf16(values[dim]);
  for (int64_t dim = layout.head_dim; dim < layout.dims; ++dim) target[dim * step] = 0;
}

int64_t CpuBackend::kv_block_bytes(int32_t kv_heads, int32_t head_dim, int32_t page_size, DType dtype) const {
  return KvLayout(kv_heads, head_dim, page_size, dtype).block_bytes();
}

void CpuBackend::copy_blocks(const KvLayer& kv, std::span<const BlockCopy> copies) {
  const KvLayout layout(kv);
  TM_CHECK(kv.block_bytes >= layout.block_bytes());
  for (const BlockCopy& copy : copies) {
    TM_CHECK(copy.source_block >= 0 && copy.source_block < kv.num_blocks && copy.target_block >= 0 &&
             copy.target_block < kv.num_blocks && copy.num_rows >= 0 && copy.num_rows <= kv.page_size);
    const std::byte* const source = kv.base + copy.source_block * kv.block_bytes;
    std::byte* const target = kv.base + copy.target_block * kv.block_bytes;
    if (source == target) continue;
    if (copy.num_rows == kv.page_size) {
      std::memcpy(target, source, static_cast<size_t>(layout.block_bytes()));
      continue;
    }
    for (int32_t head = 0; head < kv.kv_heads; ++head) {
      for (int32_t row = 0; row < copy.num_rows; row += layout.tile_keys) {
        const int64_t k = layout.tile_offset(head, row), v = k + layout.tile_bytes();
        const int32_t count = std::min(layout.tile_keys, copy.num_rows - row);
        copy_k_rows(layout, source + k, layout.tile_keys, 0, target + k, layout.tile_keys, 0, count);
        copy_v_rows(layout, source + v, layout.tile_keys, 0, target + v, layout.tile_keys, 0, count);
      }
    }
  }
}

}  // namespace tokenmill
