// Llama-3.1-8B's shape with random bf16 weights, made on the device, through the CUDA backend alone.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "ops/cuda/cuda_options.h"

namespace tokenmill {

inline constexpr int64_t kHidden = 4096, kInner = 14336, kVocab = 128256;
inline constexpr int32_t kHeads = 32, kKvHeads = 8, kHeadDim = 128, kPage = 16;  // the engine's default
inline constexpr int64_t kQkv = int64_t{kHeads + 2 * kKvHeads} * kHeadDim;

// What a step's time is told by.
enum class Part { kInput, kQkv, kRope, kAttention, kOutput, kGateUp, kDown, kHead, kSample };
inline constexpr std::array<const char*, 9> kPartNames = {
    "rotation table and embedding", "norm, product of q, k and v",
    "rotation, K/V write",          "attention",
    "output product and residual",  "norm, products of gate and up, activation",
    "down product and residual",    "last rows, norm, head",
    "sampling, answer on the host"};
using PartTimes = std::array<double, kPartNames.size()>;  // ms

using Clock = std::chrono::steady_clock;
inline double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

class Shape {
 public:
  Shape(Backend& ops, int layers, int64_t tokens_max) : ops_(ops), marks_(ops) {
    uint64_t seed = 1;
    const auto weight = [&](int64_t n, int64_t k) {
      auto made = make_random_cuda_weight(ops, n, k, 0.02f, seed++);
      weight_bytes_ += static_cast<int64_t>(made->bytes);
      return made;
    };
    for (int i = 0; i < layers; ++i) {
      layers_.push_back({weight(kQkv, kHidden), weight(kHidden, kHidden), weight(kInner, kHidden),
                         weight(kInner, kHidden), weight(kHidden, kInner)});
    }
    head_ = weight(kVocab, kHidden);
    table_ = make_random_cuda_weight(ops, kVocab, kHidden, 1.0f, seed++);  // looked up, not streamed
    const std::vector<float> ones(kHidden, 1.0f);
    norm_ = {matrix(1, kHidden).row<float>(0), 1e-5f};
    ops.copy_from_host(const_cast<float*>(norm_.weight), ones.data(), ones.size() * 4);
    x_ = matrix(tokens_max, kHidden);
    qkv_ = matrix(tokens_max, kQkv);
    const DType product_input = ops.product_input(Packing::kBFloat16);
    attention_ = matrix(tokens_max, kHeads * kHeadDim, product_input);
    mlp_ = matrix(tokens_max, kInner, product_input);
    cos_ = matrix(tokens_max, kHeadDim / 2);
    sin_ = matrix(tokens_max, kHeadDim / 2);
    rows_ = matrix(kBatchMax, kHidden);
    logits_ = matrix(kBatchMax, kVocab);
    for (int i = 0; i < kHeadDim / 2; ++i) inv_freq_.push_back(1.0f / static_cast<float>(i + 1));
    block_bytes_ = ops.kv_block_bytes(kKvHeads, kHeadDim, kPage, DType::kBF16);
    for (int i = 0; i < layers; ++i) {
      std::byte* const base = ops.allocate(static_cast<size_t>(block_bytes_ * kBlocks));
      kv_.push_back({base, block_bytes_, kBlocks, kPage, kKvHeads, kHeadDim, DType::kBF16});
      memory_.push_back(base);
    }
  }
  ~Shape() {
    for (std::byte* memory : memory_) ops_.free(memory);
  }
  Shape(const Shape&) = delete;
  Shape& operator=(const Shape&) = delete;

  int64_t weight_bytes() const { return weight_bytes_; }
  int64_t kv_bytes_per_token() const { return block_bytes_ / kPage * static_cast<int64_t>(layers_.size()); }
  // Operations of the layers' products and causal attention (half of the square) of a prefill.
  double prefill_operations(int64_t tokens) const {
    const double n = static_cast<double>(tokens), layers = static_cast<double>(layers_.size());
    return n * static_cast<double>(weight_bytes_ - kVocab * kHidden * 2) + 2 * n * n * kHeads * kHeadDim * layers;
  }

  // `count` sequences of q_len new tokens each that end at kv_len; ids are random where there are many, else what was
  // sampled before. With `times`, adds the step's parts up, launched one by one.
  void step(int32_t count, int32_t q_len, int32_t kv_len, PartTimes* times = nullptr) {
    Batch batch;
    const int32_t blocks = (kv_len + kPage - 1) / kPage;
    for (int32_t s = 0; s < count; ++s) {
      batch.rows.push_back({static_cast<uint64_t>(s), q_len, kv_len, s * q_len, s * blocks, blocks});
      for (int32_t b = 0; b < blocks; ++b) batch.block_tables.push_back(s * kBlocksApart + b);
      for (int32_t i = 0; i < q_len; ++i) {
        const bool known = q_len == 1 && !tokens_.empty();
        batch.tokens.push_back(known ? tokens_[static_cast<size_t>(s) % tokens_.size()]
                                     : static_cast<int32_t>(random() % kVocab));
        batch.positions.push_back(kv_len - q_len + i);
      }
      batch.sampling.push_back({.token_index = (s + 1) * q_len - 1, .temperature = 0});
    }
    ops_.plan(batch, kPage);
    const Matrix logits = logits_.slice_rows(0, count);
    timed_ = times != nullptr;
    if (timed_) marks_.mark();
    if (q_len == 1 && !timed_) {
      ops_.run_graph(static_cast<uint64_t>(count), [&] { forward(batch, logits); });
    } else {
      forward(batch, logits);
    }
    std::vector<SampledToken> sampled(static_cast<size_t>(count));
    ops_.sample(logits, batch.sampling, sampled);
    done(Part::kSample);
    if (timed_) {
      const std::vector<double> all = marks_.milliseconds();
      for (size_t i = 0; i < all.size(); ++i) (*times)[static_cast<size_t>(parts_[i])] += all[i];
      parts_.clear();
      timed_ = false;
    }
    tokens_.clear();
    for (const SampledToken& token : sampled) {
      if (token.invalid) throw std::runtime_error("the model's logits are not finite");
      tokens_.push_back(token.token);
    }
  }

  void forward(const Batch& batch, Matrix logits) {
    const int64_t tokens = static_cast<int64_t>(batch.tokens.size());
    const auto of = [&](Matrix m) { return m.slice_rows(0, tokens); };
    const RopeTable rope{of(cos_), of(sin_)};
    Matrix q = of(qkv_);
    q.cols = kHeads * kHeadDim;
    ops_.rope_table(batch.positions, inv_freq_, 1, rope);
    ops_.embed(batch.tokens, *table_, 1, of(x_));
    done(Part::kInput);
    for (size_t i = 0; i < layers_.size(); ++i) {
      const Layer& layer = layers_[i];
      ops_.linear({.x = of(x_), .input_norm = &norm_, .weight = layer.qkv.get(), .out = of(qkv_)});
      done(Part::kQkv);
      ops_.rope_kv_write({.qkv = of(qkv_), .q_heads = kHeads, .rope = &rope, .kv = kv_[i], .attention_follows = true});
      done(Part::kRope);
      ops_.attention({.q = q, .q_heads = kHeads, .kv = kv_[i], .scale = 0.088388f, .out = of(attention_)});
      done(Part::kAttention);
      ops_.linear({.x = of(attention_), .weight = layer.output.get(), .add_to_out = true, .out = of(x_)});
      done(Part::kOutput);
      ops_.gated_linear(
          {.x = of(x_), .input_norm = &norm_, .gate = layer.gate.get(), .up = layer.up.get(), .out = of(mlp_)});
      done(Part::kGateUp);
      ops_.linear({.x = of(mlp_), .weight = layer.down.get(), .add_to_out = true, .out = of(x_)});
      done(Part::kDown);
    }
    const Matrix rows = rows_.slice_rows(0, logits.rows);
    if (tokens == logits.rows) {
      ops_.rms_norm(of(x_), norm_, rows);
    } else {
      std::vector<int32_t> last;
      for (const SamplingRow& row : batch.sampling) last.push_back(row.token_index);
      ops_.gather_rows(of(x_), last, rows);
      ops_.rms_norm(rows, norm_, rows);
    }
    ops_.linear({.x = rows, .weight = head_.get(), .out = logits});
    done(Part::kHead);
  }

  // Random bf16 inputs for products(): products of tame numbers need less power and run faster.
  void fill_inputs(int64_t rows) {
    for (const Matrix& x : {attention_.slice_rows(0, rows), mlp_.slice_rows(0, rows)}) {
      std::vector<uint16_t> values(static_cast<size_t>(x.rows * x.cols));
      // Sign and mantissa by chance, magnitude in [0.25, 2).
      for (uint16_t& value : values) {
        const uint64_t bits = random();
        value = static_cast<uint16_t>((bits & 0x807f) | (0x7d + (bits >> 16) % 3) << 7);
      }
      ops_.copy_from_host(x.data, values.data(), values.size() * 2);
    }
  }

  // Products alone, of inputs that are ready: of gate only, or of a whole layer. ms of `runs`; `out` is written and has
  // room for rows x kInner.
  double products(int64_t rows, std::byte* out, bool whole_layer, int runs) {
    const Matrix x = attention_.slice_rows(0, rows), inner = mlp_.slice_rows(0, rows);
    float first = 0;
    ops_.copy_to_host(&first, out, 4);
    const auto start = Clock::now();
    for (int i = 0; i < runs; ++i) {
      const Layer& layer = layers_[static_cast<size_t>(i) % layers_.size()];
      const auto multiply = [&](Matrix input, const std::unique_ptr<Weight>& weight) {
        ops_.linear({.x = input, .weight = weight.get(), .out = {out, rows, weight->n, weight->n, DType::kF32}});
      };
      multiply(x, layer.gate);
      if (!whole_layer) continue;
      multiply(x, layer.up);
      multiply(x, layer.qkv);
      multiply(x, layer.output);
      multiply(inner, layer.down);
    }
    ops_.copy_to_host(&first, out, 4);
    return milliseconds_since(start);
  }

 private:
  struct Layer {
    std::unique_ptr<Weight> qkv, output, gate, up, down;
  };
  static constexpr int32_t kBlocksApart = 273;  // of two sequences: at least 4096 tokens
  static constexpr int32_t kBatchMax = 64, kBlocks = kBatchMax * kBlocksApart;

  Matrix matrix(int64_t rows, int64_t cols, DType dtype = DType::kF32) {
    memory_.push_back(ops_.allocate(static_cast<size_t>(rows * cols) * size_of(dtype)));
    return {memory_.back(), rows, cols, cols, dtype};
  }
  void done(Part part) {
    if (!timed_) return;
    marks_.mark();
    parts_.push_back(part);
  }
  uint64_t random() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return state_ >> 33;
  }

  Backend& ops_;
  CudaMarks marks_;
  bool timed_ = false;
  std::vector<Part> parts_;
  std::vector<Layer> layers_;
  std::unique_ptr<Weight> head_, table_;
  Norm norm_;
  Matrix x_, qkv_, attention_, mlp_, cos_, sin_, rows_, logits_;
  std::vector<float> inv_freq_;
  std::vector<KvLayer> kv_;
  std::vector<std::byte*> memory_;
  std::vector<int32_t> tokens_;
  int64_t weight_bytes_ = 0, block_bytes_ = 0;
  uint64_t state_ = 1;
};

}  // namespace tokenmill
