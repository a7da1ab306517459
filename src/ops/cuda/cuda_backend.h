// The CUDA Backend: the twin of ops/cpu/cpu_backend.h, one file an op. All calls run on one stream of one device and
// come from one thread at a time; what returns values to the host waits for the stream.
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "ops/backend.h"
#include "ops/cuda/cuda_common.h"
#include "ops/cuda/cuda_options.h"
#include "ops/cuda/sample_args.h"
#include "ops/cuda/step_graphs.h"
#include "ops/cuda/weight_upload.h"

namespace tokenmill {

struct CudaAttentionSchedule;
struct TensorAttentionArgs;

// Rows of `stride` elements (k rounded up to 16 bytes, the padding is zero), bf16, fp16 or fp32.
struct CudaWeight final : Weight {
  DType dtype = DType::kBF16;
  bool is_float() const { return dtype == DType::kF32; }
  int64_t stride = 0;
  DeviceMemory memory;
  DeviceMemory bias_memory;
  const float* bias = nullptr;  // [n] device memory, or null
};

// Whether the current device has code for the kernels of this build: what asking for one of them gives.
cudaError_t find_kernels();  // elementwise.cu

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const CudaOptions& options);
  ~CudaBackend() override;

  std::string name() const override { return "cuda"; }
  std::string description() const override;  // cuda_backend.cc
  int num_threads() const override { return 1; }
  bool keeps_quantized() const override { return false; }
  bool has_float16() const override { return true; }
  DType product_input(Packing packing) const override { return dtype_of(packing); }
  bool has_graphs() const override { return true; }
  void set_warning_sink(std::function<void(const std::string&)> sink) override {
    graphs_.set_warning_sink(std::move(sink));
  }
  void run_graph(uint64_t key, const std::function<void()>& work) override;  // cuda_backend.cc
  int64_t num_graph_launches() const { return graphs_.num_launches(); }
  int64_t available_memory() const override;  // memory.cu
  std::byte* allocate(size_t bytes) override;
  void free(std::byte* memory) override;
  void copy_to_host(void* target, const void* source, size_t bytes) override;
  void copy_from_host(void* target, const void* source, size_t bytes) override;
  void release_pages(std::byte* memory, size_t bytes) override;
  std::unique_ptr<Weight> pack(std::span<const RawTensor* const> parts, std::span<const float> bias,
                               Packing packing) override;  // pack.cu
  void plan(const Batch& batch, int32_t page_size) override;
  void embed(std::span<const int32_t> ids, const Weight& table, float scale, Matrix out) override;  // embed.cu
  void gather_rows(Matrix x, std::span<const int32_t> rows, Matrix out) override;                   // elementwise.cu
  void rms_norm(Matrix x, const Norm& norm, Matrix out) override;                                   // norm.cu
  void add_rms_norm(Matrix x, const Norm& norm, Matrix sum) override;
  void linear(const LinearArgs& args) override;  // linear.cu
  void gated_linear(const GatedLinearArgs& args) override;
  void rope_table(std::span<const int32_t> positions, std::span<const float> inv_freq, float factor,
                  RopeTable out) override;  // rope.cu
  void rope_kv_write(const RopeKvArgs& args) override;
  void attention(const AttentionArgs& args) override;  // attention.cu
  void softcap(Matrix x, float cap) override;          // elementwise.cu
  int64_t kv_block_bytes(int32_t kv_heads, int32_t head_dim, int32_t page_size, DType dtype) const override;
  void copy_blocks(const KvLayer& kv, std::span<const BlockCopy> copies) override;                      // kv.cu
  void sample(Matrix logits, std::span<const SamplingRow> rows, std::span<SampledToken> out) override;  // sample.cc
  bool overlaps() const override { return true; }
  void launch_sample(Matrix logits, std::span<const SamplingRow> rows, int32_t first_slot, int32_t num_slots) override;
  void collect_samples(std::span<SampledToken> out) override;

  int device() const { return device_; }
  cudaStream_t stream() const { return stream_->get(); }
  bool deterministic() const { return deterministic_; }
  void use_device() const { TM_CUDA(cudaSetDevice(device_)); }

 private:
  struct StepPlan;  // step_plan.h
  // Answers on their way to the host.
  struct PendingSamples {
    std::vector<SampleRowArgs> rows;
    std::vector<int32_t> ids;  // of the rows' lists
    size_t num_tops = 0;
    PinnedMemory host;
  };
  // How rope_kv_write() has left the queries to the attention() that follows it: to be rotated, with the new keys and
  // values to be written; or rotated and rounded to the KV's type, each head in the first half of its place.
  struct PendingQueries {
    const void* qkv;
    const std::byte* kv;
    std::optional<RopeTable> rotate_by;
  };

  // The values on the device: a part of the step's upload where they are the same, else a copy of their own. In a
  // record only spans of the planned batch itself will do.
  const int32_t* device_ids(std::span<const int32_t> ids, DeviceScratch& scratch);
  // Tokens of the plan that the step before has drawn: from their slots to their places.
  void take_slot_tokens(std::span<const SlotToken> tokens, const SlotToken* device_tokens,
                        int32_t* target);  // embed.cu
  const float* device_inv_freq(std::span<const float> inv_freq);
  static constexpr DType dtype_of(Packing packing) {
    return packing == Packing::kFloat32 ? DType::kF32 : packing == Packing::kFloat16 ? DType::kF16 : DType::kBF16;
  }
  // x, normed if asked, in the weight's type and stride: [rows, stride].
  void prepare_input(Matrix x, const Norm* norm, const CudaWeight& weight, void* out);  // norm.cu
  bool has_tensor_attention(const KvLayer& kv, int32_t q_heads) const;                  // attention.cu
  bool has_hopper_attention(const KvLayer& kv) const;
  bool attend_by_tensor_cores(const AttentionArgs& args);
  void launch_tensor_attention(TensorAttentionArgs& kernel, const CudaAttentionSchedule& schedule, const KvLayer& kv);
  bool can_leave_queries(const RopeKvArgs& args) const;  // rope.cu: to attention()'s tensor core kernels
  struct PreparedInput {
    const void* data;  // in the weight's type, padded with zeros to its stride
    int64_t stride;
  };
  // x itself where it will do, else prepare_input() into scratch.
  PreparedInput input_of(Matrix x, const Norm* norm, const CudaWeight& weight);  // linear.cu
  // False where none of stream_linear.h, wide_linear.h, tens_linear.h and many_linear.h can do it, or is to.
  bool stream_product(Matrix x, const Norm* norm, const CudaWeight& weight, const CudaWeight* second,
                      Activation activation, bool add, Matrix out);
  void gemm(const CudaWeight& weight, PreparedInput x, int64_t rows, bool add, Matrix out);
  template <class P, class T>  // the products' type and the output's
  void gated_gemm(const GatedLinearArgs& args, const CudaWeight& gate, const CudaWeight& up, PreparedInput x);
  // The same for deterministic inference.
  void invariant_product(const CudaWeight& weight, PreparedInput x, int64_t rows, bool add,
                         Matrix out);  // linear_invariant.cu

  int device_;
  int gemv_rows_max_, stream_rows_max_, tens_rows_max_, tens_rows_min_, many_rows_min_, many_k_min_, wide_rows_max_;
  int load_threads_;
  bool hopper_attention_, deterministic_;
  int num_sms_ = 0;
  size_t shared_bytes_max_ = 0;  // of a block
  bool early_launch_ = false;    // launch.cuh
  std::string card_;
  std::unique_ptr<CudaStream> stream_;
  std::unique_ptr<CublasHandle> cublas_;
  std::mutex allocations_mutex_;
  std::unordered_map<std::byte*, DeviceMemory> allocations_;
  ScratchMoves moves_;  // before all that counts in it
  std::unique_ptr<StepPlan> plan_;
  StepGraphs graphs_{moves_};
  std::optional<PendingQueries> pending_queries_;
  struct Frequencies {
    std::vector<float> values;
    DeviceMemory memory;
  };
  std::vector<Frequencies> frequencies_;
  size_t next_frequencies_ = 0;
  DeviceScratch ids_{moves_}, row_ids_{moves_}, input_{moves_}, product_{moves_}, partials_{moves_},
      counters_{moves_, true}, unit_counters_{moves_, true}, sample_rows_{moves_}, sample_out_{moves_},
      token_slots_{moves_};
  int32_t num_token_slots_ = 0;
  PackedUpload sample_upload_{moves_};
  std::deque<PendingSamples> pending_samples_;  // the first num_pending_samples_, in order; the others are kept for use
  size_t num_pending_samples_ = 0;
  CudaEvent samples_copied_;
  std::unique_ptr<WeightUpload> upload_;  // from the first pack() to the first plan()
};

}  // namespace tokenmill
