// The KV memory of a model: [layer][block], reserved once at start. Pages are touched when a block is first written.
// Layers with a window may have fewer blocks than the others; these are numbered by themselves (KvGroup).
//
// Who owns which block is the host column's business (cache/); the layout inside a block is the backend's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "batch/batch.h"
#include "ops/backend.h"

namespace tokenmill {

struct KvPoolShape {
  int32_t num_layers = 0;
  int32_t kv_heads = 0, head_dim = 0;
  int32_t page_size = 0;   // tokens a block
  int32_t num_blocks = 0;  // of every layer that is not of the window group
  DType dtype = DType::kBF16;
  int32_t window_blocks = 0;       // of every layer of the window group
  std::vector<char> layer_window;  // per layer: 1 = of the window group; empty: none is

  KvGroup group(int64_t layer) const {
    return !layer_window.empty() && layer_window[static_cast<size_t>(layer)] ? KvGroup::kWindow : KvGroup::kFull;
  }
  int32_t blocks(KvGroup group) const { return group == KvGroup::kWindow ? window_blocks : num_blocks; }
  int64_t layers(KvGroup group) const;
};

class KvPool {
 public:
  // Throws Error(kRuntime) "Not enough memory. …" when the backend cannot reserve it. The backend must outlive the
  // pool.
  KvPool(Backend& backend, const KvPoolShape& shape);
  ~KvPool();
  KvPool(const KvPool&) = delete;
  KvPool& operator=(const KvPool&) = delete;

  const KvLayer& layer(int64_t index) const { return layers_[static_cast<size_t>(index)]; }
  const KvPoolShape& shape() const { return shape_; }

  // Copies token rows between blocks in every layer of the group, in the order given.
  void copy_blocks(KvGroup group, std::span<const BlockCopy> copies);

  // One block of every layer, bytes_per_block() in all, layer after layer, to host memory and back.
  void read_block(int32_t block, std::byte* to) const;
  void write_block(int32_t block, const std::byte* from);

  // The whole reservation, for tests that poison it.
  std::span<std::byte> memory() const { return {memory_, bytes_}; }
  // Of a token that all layers hold.
  int64_t bytes_per_token() const {
    return (bytes_per_block(backend_, shape_, KvGroup::kFull) + bytes_per_block(backend_, shape_, KvGroup::kWindow)) /
           shape_.page_size;
  }
  // Bytes one block takes over all layers of the group; numbers of blocks are not looked at.
  static int64_t bytes_per_block(const Backend& backend, const KvPoolShape& shape, KvGroup group);

 private:
  Backend& backend_;
  KvPoolShape shape_;
  std::byte* memory_ = nullptr;
  size_t bytes_ = 0;
  std::vector<KvLayer> layers_;
};

}  // namespace tokenmill
