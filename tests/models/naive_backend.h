// An independent reference for model tests: every operation of Backend in plain fp32 loops with sums in double, one
// thread, no packing. Weights are always held as fp32, whatever the Packing; KV too.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "ops/backend.h"

namespace tokenmill {

class NaiveBackend final : public Backend {
 public:
  std::string name() const override { return "naive"; }
  std::string description() const override { return "naive fp32 loops"; }
  int num_threads() const override { return 1; }
  int64_t available_memory() const override { return 0; }
  std::byte* allocate(size_t bytes) override;
  void free(std::byte* memory) override;
  void copy_to_host(void* target, const void* source, size_t bytes) override;
  void copy_from_host(void* target, const void* source, size_t bytes) override;
  void release_pages(std::byte* memory, size_t bytes) override;
  std::unique_ptr<Weight> pack(std::span<const RawTensor* const> parts, std::span<const float> bias,
                               Packing packing) override;
  void plan(const Batch& batch, int32_t page_size) override;
  void embed(std::span<const int32_t> ids, const Weight& table, float scale, Matrix out) override;
  void gather_rows(Matrix x, std::span<const int32_t> rows, Matrix out) override;
  void rms_norm(Matrix x, const Norm& norm, Matrix out) override;
  void add_rms_norm(Matrix x, const Norm& norm, Matrix sum) override;
  void linear(const LinearArgs& args) override;
  void gated_linear(const GatedLinearArgs& args) override;
  void rope_table(std::span<const int32_t> positions, std::span<const float> inv_freq, float factor,
                  RopeTable out) override;
  void rope_kv_write(const RopeKvArgs& args) override;
  void attention(const AttentionArgs& args) override;
  void softcap(Matrix x, float cap) override;
  int64_t kv_block_bytes(int32_t kv_heads, int32_t head_dim, int32_t page_size, DType dtype) const override;
  void copy_blocks(const KvLayer& kv, std::span<const BlockCopy> copies) override;
  void sample(Matrix logits, std::span<const SamplingRow> rows, std::span<SampledToken> out) override;

 private:
  // Where k (part 0) or v (part 1) of one token and head is. Block: [token][part][kv head][head_dim].
  float* kv_slot(const KvLayer& kv, const BatchRow& row, int32_t position, int part, int32_t head) const;

  std::unordered_map<std::byte*, std::unique_ptr<std::byte[]>> memory_;
  std::vector<BatchRow> rows_;
  std::vector<int32_t> block_tables_, window_tables_;
};

}  // namespace tokenmill
