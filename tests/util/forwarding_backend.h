// A backend that hands every call on to another one, for tests that look at, or meddle with, some of them.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "ops/backend.h"

namespace tokenmill::testing {

class ForwardingBackend : public Backend {
 public:
  explicit ForwardingBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}

  std::string name() const override { return inner_->name(); }
  std::string description() const override { return inner_->description(); }
  int num_threads() const override { return inner_->num_threads(); }
  int64_t available_memory() const override { return inner_->available_memory(); }
  std::byte* allocate(size_t bytes) override { return inner_->allocate(bytes); }
  void free(std::byte* memory) override { inner_->free(memory); }
  void copy_to_host(void* target, const void* source, size_t bytes) override {
    inner_->copy_to_host(target, source, bytes);
  }
  void copy_from_host(void* target, const void* source, size_t bytes) override {
    inner_->copy_from_host(target, source, bytes);
  }
  void release_pages(std::byte* memory, size_t bytes) override { inner_->release_pages(memory, bytes); }
  bool keeps_quantized() const override { return inner_->keeps_quantized(); }
  bool has_float16() const override { return inner_->has_float16(); }
  std::unique_ptr<Weight> pack(std::span<const RawTensor* const> parts, std::span<const float> bias,
                               Packing packing) override {
    return inner_->pack(parts, bias, packing);
  }
  DType product_input(Packing packing) const override { return inner_->product_input(packing); }
  void plan(const Batch& batch, int32_t page_size) override { inner_->plan(batch, page_size); }
  void embed(std::span<const int32_t> ids, const Weight& table, float scale, Matrix out) override {
    inner_->embed(ids, table, scale, out);
  }
  void gather_rows(Matrix x, std::span<const int32_t> rows, Matrix out) override { inner_->gather_rows(x, rows, out); }
  void rms_norm(Matrix x, const Norm& norm, Matrix out) override { inner_->rms_norm(x, norm, out); }
  void add_rms_norm(Matrix x, const Norm& norm, Matrix sum) override { inner_->add_rms_norm(x, norm, sum); }
  void linear(const LinearArgs& args) override { inner_->linear(args); }
  void gated_linear(const GatedLinearArgs& args) override { inner_->gated_linear(args); }
  void rope_table(std::span<const int32_t> positions, std::span<const float> inv_freq, float factor,
                  RopeTable out) override {
    inner_->rope_table(positions, inv_freq, factor, out);
  }
  void rope_kv_write(const RopeKvArgs& args) override { inner_->rope_kv_write(args); }
  void attention(const AttentionArgs& args) override { inner_->attention(args); }
  void softcap(Matrix x, float cap) override { inner_->softcap(x, cap); }
  int64_t kv_block_bytes(int32_t kv_heads, int32_t head_dim, int32_t page_size, DType dtype) const override {
    return inner_->kv_block_bytes(kv_heads, head_dim, page_size, dtype);
  }
  void copy_blocks(const KvLayer& kv, std::span<const BlockCopy> copies) override { inner_->copy_blocks(kv, copies); }
  void set_warning_sink(std::function<void(const std::string&)> sink) override {
    inner_->set_warning_sink(std::move(sink));
  }
  bool has_graphs() const override { return inner_->has_graphs(); }
  void run_graph(uint64_t key, const std::function<void()>& work) override { inner_->run_graph(key, work); }
  void sample(Matrix logits, std::span<const SamplingRow> rows, std::span<SampledToken> out) override {
    inner_->sample(logits, rows, out);
  }
  bool overlaps() const override { return inner_->overlaps(); }
  void launch_sample(Matrix logits, std::span<const SamplingRow> rows, int32_t first_slot, int32_t num_slots) override {
    inner_->launch_sample(logits, rows, first_slot, num_slots);
  }
  void collect_samples(std::span<SampledToken> out) override { inner_->collect_samples(out); }

 protected:
  Backend& inner() { return *inner_; }

 private:
  std::unique_ptr<Backend> inner_;
};

}  // namespace tokenmill::testing
