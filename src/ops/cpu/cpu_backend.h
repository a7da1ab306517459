// The CPU's Backend: one file an op beside this header, each choosing its kernel by isa() at its top.
#pragma once

#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/machine.h"
#include "base/page_memory.h"
#include "base/thread_pool.h"
#include "ops/backend.h"
#include "ops/cpu/cpu_features.h"

namespace tokenmill {

// Grow-only memory aligned to a page; contents are undefined after get().
class ScratchBuffer {
 public:
  std::byte* get(size_t bytes);

 private:
  PageMemory memory_;
};

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const CpuOptions& options);
  ~CpuBackend() override;

  std::string name() const override { return "cpu"; }
  std::string description() const override;  // cpu_backend.cc
  int num_threads() const override { return pool_.num_threads(); }
  int64_t available_memory() const override { return tokenmill::available_memory(); }
  std::byte* allocate(size_t bytes) override;  // memory.cc
  void free(std::byte* memory) override;
  void copy_to_host(void* target, const void* source, size_t bytes) override;
  void copy_from_host(void* target, const void* source, size_t bytes) override;
  void release_pages(std::byte* memory, size_t bytes) override;
  std::unique_ptr<Weight> pack(std::span<const RawTensor* const> parts, std::span<const float> bias,
                               Packing packing) override;                                           // pack.cc
  void plan(const Batch& batch, int32_t page_size) override;                                        // attention.cc
  void embed(std::span<const int32_t> ids, const Weight& table, float scale, Matrix out) override;  // embed.cc
  void gather_rows(Matrix x, std::span<const int32_t> rows, Matrix out) override;                   // elementwise.cc
  void rms_norm(Matrix x, const Norm& norm, Matrix out) override;                                   // norm.cc
  void add_rms_norm(Matrix x, const Norm& norm, Matrix sum) override;
  void linear(const LinearArgs& args) override;  // linear.cc
  void gated_linear(const GatedLinearArgs& args) override;
  void rope_table(std::span<const int32_t> positions, std::span<const float> inv_freq, float factor,
                  RopeTable out) override;  // rope.cc
  void rope_kv_write(const RopeKvArgs& args) override;
  void attention(const AttentionArgs& args) override;  // attention.cc
  void softcap(Matrix x, float cap) override;          // elementwise.cc
  int64_t kv_block_bytes(int32_t kv_heads, int32_t head_dim, int32_t page_size, DType dtype) const override;
  void copy_blocks(const KvLayer& kv, std::span<const BlockCopy> copies) override;                      // kv.cc
  void sample(Matrix logits, std::span<const SamplingRow> rows, std::span<SampledToken> out) override;  // sample.cc

  Isa isa() const { return isa_; }
  ThreadPool& pool() { return pool_; }
  std::byte* worker_scratch(int worker, size_t bytes) { return worker_scratch_[worker].get(bytes); }
  std::byte* shared_scratch(size_t bytes) { return shared_scratch_.get(bytes); }

 private:
  struct StepPlan;  // step_plan.h: rows, block tables and work items of the step
  Isa isa_;
  ThreadPool pool_;
  std::vector<ScratchBuffer> worker_scratch_;
  ScratchBuffer shared_scratch_;
  std::mutex allocations_mutex_;  // loading may allocate beside the engine thread
  std::unordered_map<std::byte*, PageMemory> allocations_;
  std::unique_ptr<StepPlan> plan_;
};

}  // namespace tokenmill
