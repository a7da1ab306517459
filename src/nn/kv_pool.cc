#include "nn/kv_pool.h"

#include "base/check.h"

namespace tokenmill {

int64_t KvPoolShape::layers(KvGroup wanted) const {
  int64_t count = 0;
  for (int32_t layer = 0; layer < num_layers; ++layer) count += group(layer) == wanted;
  return count;
}

int64_t KvPool::bytes_per_block(const Backend& backend, const KvPoolShape& shape, KvGroup group) {
  return shape.layers(group) * backend.kv_block_bytes(shape.kv_heads, shape.head_dim, shape.page_size, shape.dtype);
}

KvPool::KvPool(Backend& backend, const KvPoolShape& shape) : backend_(backend), shape_(shape) {
  TM_CHECK(shape.num_layers > 0 && shape.num_blocks > 0 && shape.page_size > 0);
  TM_CHECK(shape.layer_window.empty() || static_cast<int32_t>(shape.layer_window.size()) == shape.num_layers);
  TM_CHECK(shape.layers(KvGroup::kWindow) == 0 || shape.window_blocks > 0);
  const int64_t block_bytes = backend.kv_block_bytes(shape.kv_heads, shape.head_dim, shape.page_size, shape.dtype);
  for (const KvGroup group : {KvGroup::kFull, KvGroup::kWindow}) {
    bytes_ += static_cast<size_t>(shape.layers(group) * shape.blocks(group) * block_bytes);
  }
  memory_ = backend.allocate(bytes_);
  layers_.reserve(static_cast<size_t>(shape.num_layers));
  std::byte* base = memory_;
  for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
    const KvGroup group = shape.group(layer);
    layers_.push_back({.base = base,
                       .block_bytes = block_bytes,
                       .num_blocks = shape.blocks(group),
                       .page_size = shape.page_size,
                       .kv_heads = shape.kv_heads,
                       .head_dim = shape.head_dim,
                       .dtype = shape.dtype,
                       .group = group});
    base += block_bytes * shape.blocks(group);
  }
}

KvPool::~KvPool() { backend_.free(memory_); }

void KvPool::copy_blocks(KvGroup group, std::span<const BlockCopy> copies) {
  if (copies.empty()) return;
  for (const KvLayer& layer : layers_) {
    if (layer.group == group) backend_.copy_blocks(layer, copies);
  }
}

void KvPool::read_block(int32_t block, std::byte* to) const {
  TM_CHECK(block >= 0 && block < shape_.num_blocks && shape_.window_blocks == 0);
  for (const KvLayer& layer : layers_) {
    const auto bytes = static_cast<size_t>(layer.block_bytes);
    backend_.copy_to_host(to, layer.base + block * layer.block_bytes, bytes);
    to += bytes;
  }
}

void KvPool::write_block(int32_t block, const std::byte* from) {
  TM_CHECK(block >= 0 && block < shape_.num_blocks && shape_.window_blocks == 0);
  for (const KvLayer& layer : layers_) {
    const auto bytes = static_cast<size_t>(layer.block_bytes);
    backend_.copy_from_host(layer.base + block * layer.block_bytes, from, bytes);
    from += bytes;
  }
}

}  // namespace tokenmill
