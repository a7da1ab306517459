// How keys and values lie in a KV block on the device: [kv_head][K, V][page_size][dims], dims = head_dim rounded up to
// 8, so that a row is whole 16-byte loads; the padding is zero in every row that was written.
#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace tokenmill {

inline int32_t cuda_kv_dims(int32_t head_dim) { return (head_dim + 7) / 8 * 8; }

inline int64_t cuda_kv_block_bytes(int32_t kv_heads, int32_t head_dim, int32_t page_size, DType dtype) {
  return int64_t{kv_heads} * 2 * page_size * cuda_kv_dims(head_dim) * static_cast<int64_t>(size_of(dtype));
}

}  // namespace tokenmill
