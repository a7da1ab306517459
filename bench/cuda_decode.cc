// Llama-3.1-8B's shape with random bf16 weights, made on the device, through the CUDA backend alone: milliseconds a
// decode step (plan, forward and logits as a recorded graph, greedy sampling, the copy back) and a prefill, beside the
// read roof and the GEMM rate of the same run.
//
//   cuda_decode [layers] [decode|prefill|all] [deterministic] [stream=ROWS] [wide=ROWS]
//
// stream and wide: up to how many rows the kernels of stream_linear.h and wide_linear.h are used.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "ops/cuda/cuda_options.h"

namespace tokenmill {
namespace {

constexpr int64_t kHidden = 4096, kInner = 14336, kVocab = 128256;
constexpr int32_t kHeads = 32, kKvHeads = 8, kHeadDim = 128, kPage = 16;  // the engine's default
constexpr int64_t kQkv = int64_t{kHeads + 2 * kKvHeads} * kHeadDim;

using Clock = std::chrono::steady_clock;
double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

struct Layer {
  std::unique_ptr<Weight> qkv, output, gate, up, down;
};

class Shape {
 public:
  Shape(Backend& ops, int layers, int64_t tokens_max) : ops_(ops) {
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

  // `count` sequences of q_len new tokens each that end at kv_len.
  void step(int32_t count, int32_t q_len, int32_t kv_len) {
    Batch batch;
    const int32_t blocks = (kv_len + kPage - 1) / kPage;
    for (int32_t s = 0; s < count; ++s) {
      batch.rows.push_back({static_cast<uint64_t>(s), q_len, kv_len, s * q_len, s * blocks, blocks});
      for (int32_t b = 0; b < blocks; ++b) batch.block_tables.push_back(s * kBlocksApart + b);
      for (int32_t i = 0; i < q_len; ++i) {
        batch.tokens.push_back(tokens_.empty() ? (s + i * 37) % 1000
                                               : tokens_[static_cast<size_t>(s) % tokens_.size()]);
        batch.positions.push_back(kv_len - q_len + i);
      }
      batch.sampling.push_back({.token_index = (s + 1) * q_len - 1, .temperature = 0});
    }
    ops_.plan(batch, kPage);
    const Matrix logits = logits_.slice_rows(0, count);
    if (q_len == 1) {
      ops_.run_graph(static_cast<uint64_t>(count), [&] { forward(batch, logits); });
    } else {
      forward(batch, logits);
    }
    std::vector<SampledToken> sampled(static_cast<size_t>(count));
    ops_.sample(logits, batch.sampling, sampled);
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
    for (size_t i = 0; i < layers_.size(); ++i) {
      const Layer& layer = layers_[i];
      ops_.linear({.x = of(x_), .input_norm = &norm_, .weight = layer.qkv.get(), .out = of(qkv_)});
      ops_.rope_kv_write({.qkv = of(qkv_), .q_heads = kHeads, .rope = &rope, .kv = kv_[i], .attention_follows = true});
      ops_.attention({.q = q, .q_heads = kHeads, .kv = kv_[i], .scale = 0.088388f, .out = of(attention_)});
      ops_.linear({.x = of(attention_), .weight = layer.output.get(), .add_to_out = true, .out = of(x_)});
      ops_.gated_linear(
          {.x = of(x_), .input_norm = &norm_, .gate = layer.gate.get(), .up = layer.up.get(), .out = of(mlp_)});
      ops_.linear({.x = of(mlp_), .weight = layer.down.get(), .add_to_out = true, .out = of(x_)});
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
  }

  // A product of the MLP alone, for the GEMM rate: milliseconds of `runs`. Its input is random: products of tame
  // numbers need less power and run faster.
  double products(Matrix out, int runs) {
    const Matrix x = attention_.slice_rows(0, out.rows);
    std::vector<uint16_t> values(static_cast<size_t>(x.rows * x.cols));
    uint64_t state = 1;
    for (uint16_t& value : values) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      // Sign and mantissa by chance, magnitude in [0.25, 2).
      value = static_cast<uint16_t>((state >> 40 & 0x807f) | (0x7d + (state >> 60) % 3) << 7);
    }
    ops_.copy_from_host(x.data, values.data(), values.size() * 2);
    float first = 0;
    ops_.copy_to_host(&first, out.data, 4);
    const auto start = Clock::now();
    for (int i = 0; i < runs; ++i) {
      ops_.linear({.x = x, .weight = layers_[static_cast<size_t>(i) % layers_.size()].gate.get(), .out = out});
    }
    ops_.copy_to_host(&first, out.data, 4);
    return milliseconds_since(start);
  }

 private:
  static constexpr int32_t kBlocksApart = 273;  // of two sequences: at least 4096 tokens
  static constexpr int32_t kBatchMax = 64, kBlocks = kBatchMax * kBlocksApart;

  Matrix matrix(int64_t rows, int64_t cols, DType dtype = DType::kF32) {
    memory_.push_back(ops_.allocate(static_cast<size_t>(rows * cols) * size_of(dtype)));
    return {memory_.back(), rows, cols, cols, dtype};
  }

  Backend& ops_;
  std::vector<Layer> layers_;
  std::unique_ptr<Weight> head_, table_;
  Norm norm_;
  Matrix x_, qkv_, attention_, mlp_, cos_, sin_, rows_, logits_;
  std::vector<float> inv_freq_;
  std::vector<KvLayer> kv_;
  std::vector<std::byte*> memory_;
  std::vector<int32_t> tokens_;
  int64_t weight_bytes_ = 0, block_bytes_ = 0;
};

double median_step(Shape& shape, int runs, int32_t count, int32_t q_len, int32_t kv_len) {
  std::vector<double> times;
  for (int i = 0; i < runs + 3; ++i) {
    const auto start = Clock::now();
    shape.step(count, q_len, kv_len);
    if (i >= 3) times.push_back(milliseconds_since(start));
  }
  std::nth_element(times.begin(), times.begin() + static_cast<int64_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

void decode_table(Shape& shape, double roof) {
  std::printf("\nbatch context   ms/step   tok/s   share of read roof (weights + KV)\n");
  for (const int32_t context : {128, 4096}) {
    for (const int32_t count : {1, 2, 3, 4, 8, 16, 32, 64}) {
      const double ms = median_step(shape, 40, count, 1, context);
      const double bytes = static_cast<double>(shape.weight_bytes() + shape.kv_bytes_per_token() * count * context);
      std::printf("%5d %7d  %8.3f  %6.0f   %5.1f %%\n", count, context, ms, 1000.0 * count / ms,
                  100 * bytes / roof * 1000 / ms);
      std::fflush(stdout);
    }
  }
}

void prefill_table(Backend& ops, Shape& shape, int layers) {
  shape.step(1, 8192, 8192);
  const size_t bytes = size_t{8192} * kInner * 4;
  std::byte* const memory = ops.allocate(bytes);
  const Matrix out{memory, 8192, kInner, kInner, DType::kF32};
  shape.products(out, 3);
  const double gemm_ms = shape.products(out, 20) / 20;
  ops.free(memory);
  const double gemm_rate = 2.0 * 8192 * kHidden * kInner / (gemm_ms * 1e-3);
  std::printf("\none product [8192, 4096] x [4096, 14336]: %.3f ms, %.0f TFLOP/s\n", gemm_ms, gemm_rate / 1e12);
  for (const int32_t tokens : {512, 2048, 8192, 32768}) {
    const double ms = median_step(shape, tokens > 8192 ? 1 : 5, 1, tokens, tokens);
    const double products = 2.0 * tokens * static_cast<double>(shape.weight_bytes() - kVocab * kHidden * 2) / 2;
    const double attention = 2.0 * tokens * tokens * kHeads * kHeadDim * layers;  // half of the square, twice
    std::printf("prefill %5d: %9.2f ms, %8.0f tok/s, %.1f %% of that rate\n", tokens, ms, 1000.0 * tokens / ms,
                100 * (products + attention) / gemm_rate * 1000 / ms);
    std::fflush(stdout);
  }
}

int run(int layers, const std::string& what, const CudaOptions& options) {
  const auto backend = make_cuda_backend(options);
  std::printf("%s\n", backend->description().c_str());
  const double roof = measure_cuda_read_bandwidth(*backend, size_t{8} << 30);
  std::printf("read roof %.3f TB/s\n", roof / 1e12);
  Shape shape(*backend, layers, 32768);
  std::printf("%d layers, %.3f GB streamed a step\n", layers, static_cast<double>(shape.weight_bytes()) / 1e9);
  if (what != "prefill") {
    for (int32_t end = 512; end <= 4096; end += 512) shape.step(64, 512, end);  // no zeros in what attention reads
    decode_table(shape, roof);
  }
  if (what != "decode") prefill_table(*backend, shape, layers);
  return 0;
}

}  // namespace
}  // namespace tokenmill

int main(int argc, char** argv) {
  try {
    tokenmill::CudaOptions options;
    for (int i = 3; i < argc; ++i) {
      const std::string option = argv[i];
      if (option == "deterministic") {
        options.deterministic = true;
      } else if (option.starts_with("stream=")) {
        options.stream_rows_max = std::stoi(option.substr(7));
      } else if (option.starts_with("wide=")) {
        options.wide_rows_max = std::stoi(option.substr(5));
      } else {
        throw std::runtime_error("no such option: " + option);
      }
    }
    return tokenmill::run(argc > 1 ? std::max(1, std::atoi(argv[1])) : 32, argc > 2 ? argv[2] : "all", options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "cuda_decode: %s\n", error.what());
    return 1;
  }
}
