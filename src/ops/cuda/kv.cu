// Size and copies of KV blocks.
#include "base/check.h"
#include "ops/cuda/cuda_backend.h"
#include "ops/cuda/kv_layout.h"

namespace tokenmill {

int64_t CudaBackend::kv_block_bytes(int32_t kv_heads, int32_t head_dim, int32_t page_size, DType dtype) const {
  return cuda_kv_block_bytes(kv_heads, head_dim, page_size, dtype);
}

void CudaBackend::copy_blocks(const KvLayer& kv, std::span<const BlockCopy> copies) {
  TM_CHECK(kv.block_bytes >= cuda_kv_block_bytes(kv.kv_heads, kv.head_dim, kv.page_size, kv.dtype));
  use_device();
  const size_t row_bytes = static_cast<size_t>(cuda_kv_dims(kv.head_dim)) * size_of(kv.dtype);
  const size_t pitch = row_bytes * static_cast<size_t>(kv.page_size);
  for (const BlockCopy& copy : copies) {
    TM_CHECK(copy.source_block >= 0 && copy.source_block < kv.num_blocks && copy.target_block >= 0 &&
             copy.target_block < kv.num_blocks && copy.num_rows >= 0 && copy.num_rows <= kv.page_size);
    if (copy.source_block == copy.target_block || copy.num_rows == 0) continue;
    TM_CUDA(cudaMemcpy2DAsync(kv.base + copy.target_block * kv.block_bytes, pitch,
                              kv.base + copy.source_block * kv.block_bytes, pitch,
                              row_bytes * static_cast<size_t>(copy.num_rows), static_cast<size_t>(2 * kv.kv_heads),
                              cudaMemcpyDeviceToDevice, stream()));
  }
}

}  // namespace tokenmill
