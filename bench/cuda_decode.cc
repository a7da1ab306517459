// Llama-3.1-8B's shape through the CUDA backend alone: milliseconds a decode step (plan, forward and logits as a
// recorded graph, greedy sampling, the copy back) and a prefill of random ids, beside the read roof and the GEMM rates
// of the same run, and where a step's time goes.
//
//   cuda_decode [layers] [decode|prefill|gaps|all] [deterministic] [stream=ROWS] [tens=ROWS] [wide=ROWS]
//               [many=ROWS] [hopper=0]
//
// stream, wide and tens: up to how many rows the kernels of stream_linear.h, wide_linear.h, and split_linear.h with
// tens_linear.h are used; many: from how many on that of many_linear.h is; hopper=0: attention without the kernels of
// hopper_attention.h.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cuda_shape.h"

namespace tokenmill {
namespace {

double median(std::vector<double> times) {
  std::nth_element(times.begin(), times.begin() + static_cast<int64_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

// Of at least `runs` and as many as `ms_min` takes, after half of that time: a card at its power limit needs a moment
// to come to its clock.
double median_step(Shape& shape, int runs, double ms_min, int32_t count, int32_t q_len, int32_t kv_len) {
  for (auto start = Clock::now(); milliseconds_since(start) < ms_min / 2;) shape.step(count, q_len, kv_len);
  for (int i = 0; i < 3; ++i) shape.step(count, q_len, kv_len);
  std::vector<double> times;
  for (auto begin = Clock::now(); static_cast<int>(times.size()) < runs || milliseconds_since(begin) < ms_min;) {
    const auto start = Clock::now();
    shape.step(count, q_len, kv_len);
    times.push_back(milliseconds_since(start));
  }
  return median(std::move(times));
}

// Of one prefill at a time, each after a rest and a short run that wakes the card: as the products' peak is taken.
double rested_prefill(Shape& shape, int32_t tokens) {
  std::vector<double> times;
  for (int i = 0; i < 3; ++i) {
    std::this_thread::sleep_for(std::chrono::seconds(1));
    shape.step(1, 512, 512);
    const auto start = Clock::now();
    shape.step(1, tokens, tokens);
    times.push_back(milliseconds_since(start));
  }
  return median(std::move(times));
}

void decode_table(Shape& shape, double roof) {
  std::printf("\nbatch context   ms/step   tok/s   share of read roof (weights + KV)\n");
  for (const int32_t context : {128, 4096}) {
    for (const int32_t count : {1, 2, 3, 4, 8, 16, 24, 32, 48, 64}) {
      const double ms = median_step(shape, 40, 0, count, 1, context);
      const double bytes = static_cast<double>(shape.weight_bytes() + shape.kv_bytes_per_token() * count * context);
      std::printf("%5d %7d  %8.3f  %6.0f   %5.1f %%\n", count, context, ms, 1000.0 * count / ms,
                  100 * bytes / roof * 1000 / ms);
      std::fflush(stdout);
    }
  }
}

// Operations a second of products alone: a short run after a rest, as a peak, and what the card keeps up.
struct GemmRates {
  double peak, sustained, layer;
};

GemmRates gemm_rates(Backend& ops, Shape& shape) {
  constexpr int64_t kRows = 8192;
  constexpr double kGate = 2.0 * kRows * kHidden * kInner;
  constexpr double kLayer = 2.0 * kRows * kHidden * (3.0 * kInner + kQkv + kHidden);
  std::byte* const memory = ops.allocate(size_t{kRows} * kInner * 4);
  shape.fill_inputs(kRows);  // the card rests meanwhile
  shape.products(kRows, memory, false, 3);
  GemmRates rates{};
  rates.peak = kGate * 20 / (shape.products(kRows, memory, false, 20) * 1e-3);
  shape.products(kRows, memory, false, 800);  // about a second
  rates.sustained = kGate * 800 / (shape.products(kRows, memory, false, 800) * 1e-3);
  rates.layer = kLayer * 200 / (shape.products(kRows, memory, true, 200) * 1e-3);
  ops.free(memory);
  return rates;
}

void prefill_table(Backend& ops, Shape& shape) {
  shape.step(1, 8192, 8192);
  const GemmRates rates = gemm_rates(ops, shape);
  std::printf(
      "\nproducts of random bf16, TFLOP/s: [8192, 4096] x [4096, 14336] %.0f (20 after a rest), %.0f (for a second); a "
      "layer's five for a second %.0f\n",
      rates.peak / 1e12, rates.sustained / 1e12, rates.layer / 1e12);
  std::printf(
      "prefill of random ids    ms     tok/s  TFLOP/s   share of these three rates   one after a rest: ms, share of "
      "the "
      "first\n");
  for (const int32_t tokens : {512, 2048, 8192, 32768}) {
    const double ms = median_step(shape, 3, 1000, 1, tokens, tokens);
    const double rate = shape.prefill_operations(tokens) / (ms * 1e-3);
    const double rested_ms = rested_prefill(shape, tokens);
    std::printf("%14d  %12.2f  %8.0f  %7.0f   %.1f %%  %.1f %%  %.1f %%  %13.2f  %.1f %%\n", tokens, ms,
                1000.0 * tokens / ms, rate / 1e12, 100 * rate / rates.peak, 100 * rate / rates.sustained,
                100 * rate / rates.layer, rested_ms, 100 * rate * ms / rested_ms / rates.peak);
    std::fflush(stdout);
  }
}

// Parts launched one by one: without graphs, and without overlap of a part with the next.
void gap_table(Shape& shape, int32_t count, int32_t q_len, int32_t kv_len) {
  const int runs = q_len > 8192 ? 2 : q_len > 1 ? 8 : 40;
  PartTimes times{};
  for (auto start = Clock::now(); milliseconds_since(start) < 500;) shape.step(count, q_len, kv_len);
  for (int i = 0; i < runs; ++i) shape.step(count, q_len, kv_len, &times);
  double total = 0;
  for (const double ms : times) total += ms;
  std::printf("\n%d x %d tokens up to %d: %.3f ms\n", count, q_len, kv_len, total / runs);
  for (size_t i = 0; i < times.size(); ++i) {
    std::printf("  %-44s %9.3f ms  %5.1f %%\n", kPartNames[i], times[i] / runs, 100 * times[i] / total);
  }
  std::fflush(stdout);
}

int run(int layers, const std::string& what, const CudaOptions& options) {
  const auto backend = make_cuda_backend(options);
  std::printf("%s\n", backend->description().c_str());
  const double roof = measure_cuda_read_bandwidth(*backend, size_t{8} << 30);
  std::printf("read roof %.3f TB/s\n", roof / 1e12);
  Shape shape(*backend, layers, 32768);
  std::printf("%d layers, %.3f GB streamed a step\n", layers, static_cast<double>(shape.weight_bytes()) / 1e9);
  for (int32_t end = 512; end <= 4096; end += 512) shape.step(64, 512, end);  // no zeros in what attention reads
  if (what == "decode" || what == "all") decode_table(shape, roof);
  if (what == "prefill" || what == "all") prefill_table(*backend, shape);
  if (what == "gaps" || what == "all") {
    for (const int32_t count : {1, 16, 64}) gap_table(shape, count, 1, 128);
    for (const int32_t count : {8, 64}) gap_table(shape, count, 1, 4096);
    for (const int32_t tokens : {2048, 8192, 32768}) gap_table(shape, 1, tokens, tokens);
  }
  return 0;
}

}  // namespace
}  // namespace tokenmill

int main(int argc, char** argv) {
  try {
    tokenmill::CudaOptions options;
    const std::string what = argc > 2 ? argv[2] : "all";
    if (what != "decode" && what != "prefill" && what != "gaps" && what != "all") {
      throw std::runtime_error("no such table: " + what);
    }
    for (int i = 3; i < argc; ++i) {
      const std::string option = argv[i];
      if (option == "deterministic") {
        options.deterministic = true;
      } else if (option.starts_with("stream=")) {
        options.stream_rows_max = std::stoi(option.substr(7));
        options.tens_rows_min = options.stream_rows_max + 1;
      } else if (option.starts_with("tens=")) {
        options.tens_rows_max = std::stoi(option.substr(5));
      } else if (option.starts_with("many=")) {
        options.many_rows_min = std::stoi(option.substr(5));
      } else if (option == "hopper=0") {
        options.hopper_attention = false;
      } else if (option.starts_with("wide=")) {
        options.wide_rows_max = std::stoi(option.substr(5));
      } else {
        throw std::runtime_error("no such option: " + option);
      }
    }
    return tokenmill::run(argc > 1 ? std::max(1, std::atoi(argv[1])) : 32, what, options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "cuda_decode: %s\n", error.what());
    return 1;
  }
}
