// Matrix products of the CPU backend against the machine's roofs, measured in the same run:
//   ops_linear [--isa NAME] [--threads N] [--filter TEXT] [--seconds S]
// A line: format, shape, rows; microseconds, GB/s of packed weights and their share of the read roof, GFLOP/s and their
// share of the arithmetic roof (fp32 FMA; int8 dot product for quantised weights). Best of many.
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "ops/cpu/cpu_backend.h"

namespace tokenmill {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Fastest of the runs of body() that fit into `budget` seconds, after one to warm up; at least three.
template <class Body>
double best_seconds(double budget, Body body) {
  body();
  double best = 1e30;
  const auto start = Clock::now();
  for (int i = 0; i < 3 || seconds_since(start) < budget; ++i) {
    const auto begin = Clock::now();
    body();
    best = std::min(best, seconds_since(begin));
  }
  return best;
}

// --- roofs ----------------------------------------------------------------------------------------------------------
// Four streams, prefetched 512 bytes ahead.
__attribute__((target("avx2"))) int64_t read_streams(const std::byte* data, size_t bytes) {
  const size_t quarter = bytes / 4;
  __m256i sums[4] = {};
  for (size_t i = 0; i + 64 <= quarter; i += 64) {
#pragma GCC unroll 4
    for (int s = 0; s < 4; ++s) {
      const std::byte* const p = data + static_cast<size_t>(s) * quarter + i;
      _mm_prefetch(reinterpret_cast<const char*>(p + 512), _MM_HINT_T0);
      sums[s] = _mm256_add_epi64(sums[s], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
      sums[s] = _mm256_add_epi64(sums[s], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32)));
    }
  }
  const __m256i sum = _mm256_add_epi64(_mm256_add_epi64(sums[0], sums[1]), _mm256_add_epi64(sums[2], sums[3]));
  return _mm256_extract_epi64(sum, 0) + _mm256_extract_epi64(sum, 3);
}

constexpr int64_t kPeakSteps = 1 << 17;
constexpr int kPeakChains = 12;

__attribute__((target("avx2,fma"))) float fma_avx2() {
  __m256 acc[kPeakChains];
  for (auto& a : acc) a = _mm256_set1_ps(1.0f);
  const __m256 x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(0.001f);
  for (int64_t i = 0; i < kPeakSteps; ++i) {
#pragma GCC unroll 12
    for (auto& a : acc) a = _mm256_fmadd_ps(a, x, y);
  }
  for (auto& a : acc) acc[0] = _mm256_add_ps(acc[0], a);
  return _mm256_cvtss_f32(acc[0]);
}

__attribute__((target("avx512f"))) float fma_avx512() {
  __m512 acc[kPeakChains];
  for (auto& a : acc) a = _mm512_set1_ps(1.0f);
  const __m512 x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(0.001f);
  for (int64_t i = 0; i < kPeakSteps; ++i) {
#pragma GCC unroll 12
    for (auto& a : acc) a = _mm512_fmadd_ps(a, x, y);
  }
  for (auto& a : acc) acc[0] = _mm512_add_ps(acc[0], a);
  return _mm512_cvtss_f32(acc[0]);
}

__attribute__((target("avx512f,avx512vnni"))) float vnni_avx512() {
  __m512i acc[kPeakChains];
  for (auto& a : acc) a = _mm512_set1_epi32(1);
  const __m512i x = _mm512_set1_epi8(3), y = _mm512_set1_epi8(5);
  for (int64_t i = 0; i < kPeakSteps; ++i) {
#pragma GCC unroll 12
    for (auto& a : acc) a = _mm512_dpbusd_epi32(a, x, y);
  }
  for (auto& a : acc) acc[0] = _mm512_add_epi32(acc[0], a);
  return static_cast<float>(_mm_cvtsi128_si32(_mm512_castsi512_si128(acc[0])));
}

// maddubs and madd: the 256-bit way without VNNI.
__attribute__((target("avx2"))) float int8_avx2() {
  __m256i acc[kPeakChains];
  for (auto& a : acc) a = _mm256_set1_epi32(1);
  __m256i x = _mm256_set1_epi8(3);
  const __m256i y = _mm256_set1_epi8(5), ones = _mm256_set1_epi16(1);
  for (int64_t i = 0; i < kPeakSteps; ++i) {
#pragma GCC unroll 12
    for (auto& a : acc) {
      asm volatile("" : "+x"(x));
      a = _mm256_add_epi32(a, _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), ones));
    }
  }
  for (auto& a : acc) acc[0] = _mm256_add_epi32(acc[0], a);
  return static_cast<float>(_mm256_extract_epi32(acc[0], 0));
}

struct Roofs {
  double read_gb = 0, fma_gflop = 0, int8_gop = 0;
};

Roofs measure_roofs(CpuBackend& backend, double budget) {
  const int threads = backend.num_threads();
  Roofs roofs;
  volatile double sink = 0;
  const size_t bytes = size_t{256} << 20;
  const PageMemory memory(bytes, /*huge_pages=*/true);
  std::memset(memory.data(), 1, bytes);
  constexpr int64_t kPieces = 16;
  const double read = best_seconds(4 * budget, [&] {
    backend.pool().parallel_for(kPieces, [&](int64_t piece, int) {
      sink = static_cast<double>(
          read_streams(memory.data() + static_cast<size_t>(piece) * (bytes / kPieces), bytes / kPieces));
    });
  });
  roofs.read_gb = static_cast<double>(bytes) / read / 1e9;
  const bool wide = backend.isa() != Isa::kAvx2;
  const auto peak = [&](float (*function)(), double flops_a_step) {
    const double seconds = best_seconds(2 * budget, [&] {
      backend.pool().parallel_for(threads, [&](int64_t, int) { sink = static_cast<double>(function()); });
    });
    return flops_a_step * kPeakChains * static_cast<double>(kPeakSteps) * threads / seconds / 1e9;
  };
  roofs.fma_gflop = wide ? peak(fma_avx512, 32) : peak(fma_avx2, 16);
  const bool vnni = wide && cpu_features().avx512_vnni;
  roofs.int8_gop = vnni ? peak(vnni_avx512, 128) : peak(int8_avx2, 64);
  (void)sink;
  return roofs;
}

// --- products -------------------------------------------------------------------------------------------------------
std::vector<std::byte> random_weights(WeightType type, int64_t n, int64_t k) {
  const WeightTypeInfo& format = info(type);
  std::vector<std::byte> bytes(static_cast<size_t>(n * k / format.block_values * format.block_bytes));
  std::mt19937_64 random(1);
  for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {
    // No element or scale with all exponent bits set: neither NaN nor infinity in fp16, bf16 or fp32.
    const uint64_t value = random() & 0x8fff8fff8fff8fffull & 0xbfffbfffbfffbfffull;
    std::memcpy(bytes.data() + i, &value, 8);
  }
  return bytes;
}

struct Shape {
  int64_t n, k;
};

struct Options {
  std::string isa, filter;
  int threads = 0;
  double seconds = 0.3;
};

void run_format(CpuBackend& backend, const Roofs& roofs, WeightType type, Packing packing, Shape shape,
                const Options& options) {
  if (shape.k % info(type).block_values != 0) return;
  const std::string label = std::string(packing == Packing::kFloat32 ? "f32 of " : "") + info(type).name + " " +
                            std::to_string(shape.n) + "x" + std::to_string(shape.k);
  if (label.find(options.filter) == std::string::npos) return;
  const std::vector<std::byte> bytes = random_weights(type, shape.n, shape.k);
  RawTensor tensor;
  tensor.name = label;
  tensor.type = type;
  tensor.shape = {shape.n, shape.k};
  tensor.data = bytes.data();
  const RawTensor* const part = &tensor;
  // Copies enough that the second-level caches hold none of the weight when its turn comes again.
  std::vector<std::unique_ptr<Weight>> weights;
  size_t total = 0;
  while (weights.empty() || (total < (size_t{96} << 20) && weights.size() < 64)) {
    weights.push_back(backend.pack({&part, 1}, {}, packing));
    total += weights.back()->bytes;
  }
  const bool int8 = packing == Packing::kNative && info(type).quantized;
  for (const int64_t rows : {1, 2, 4, 8, 32, 512}) {
    if (rows == 512 && shape.n > 16384) continue;  // lm_head sees few rows
    std::vector<float> x(static_cast<size_t>(rows * shape.k)), out(static_cast<size_t>(rows * shape.n));
    std::mt19937 random(2);
    for (float& value : x) value = std::normal_distribution<float>()(random);
    LinearArgs args;
    args.x = {x.data(), rows, shape.k, shape.k, DType::kF32};
    args.out = {out.data(), rows, shape.n, shape.n, DType::kF32};
    const size_t runs = rows <= 32 ? weights.size() : 1;
    const double seconds = best_seconds(options.seconds,
                                        [&] {
                                          for (size_t i = 0; i < runs; ++i) {
                                            args.weight = weights[i].get();
                                            backend.linear(args);
                                          }
                                        }) /
                           static_cast<double>(runs);
    const double gb = static_cast<double>(weights[0]->bytes) / seconds / 1e9;
    const double gflop = 2.0 * static_cast<double>(rows * shape.n * shape.k) / seconds / 1e9;
    const double peak = int8 ? roofs.int8_gop : roofs.fma_gflop;
    std::printf("%-22s M %4ld %10.1f us %7.1f GB/s %5.0f %% of read %9.1f GFLOP/s %5.0f %% of %s\n", label.c_str(),
                static_cast<long>(rows), seconds * 1e6, gb, 100 * gb / roofs.read_gb, gflop, 100 * gflop / peak,
                int8 ? "int8" : "fma");
    std::fflush(stdout);
  }
}

void run_all(const Options& options) {
  CpuBackend backend({options.threads, options.isa});
  const Roofs roofs = measure_roofs(backend, options.seconds);
  std::printf("%s\nroofs: read %.1f GB/s, fp32 FMA %.1f GFLOP/s, int8 %.1f GOP/s\n", backend.description().c_str(),
              roofs.read_gb, roofs.fma_gflop, roofs.int8_gop);
  for (const Shape shape :
       {Shape{576, 576}, Shape{1536, 576}, Shape{2048, 8192}, Shape{8192, 2048}, Shape{49152, 576}}) {
    run_format(backend, roofs, WeightType::kF32, Packing::kFloat32, shape, options);
    for (const WeightType type : {WeightType::kBF16, WeightType::kQ8_0, WeightType::kQ4_0, WeightType::kQ4_1,
                                  WeightType::kQ5_0, WeightType::kQ2K, WeightType::kQ4K, WeightType::kQ6K}) {
      run_format(backend, roofs, type, Packing::kNative, shape, options);
    }
  }
}

}  // namespace
}  // namespace tokenmill

int main(int argc, char** argv) {
  tokenmill::Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    if (flag == "--isa") options.isa = argv[i + 1];
    if (flag == "--threads") options.threads = std::stoi(argv[i + 1]);
    if (flag == "--filter") options.filter = argv[i + 1];
    if (flag == "--seconds") options.seconds = std::stod(argv[i + 1]);
  }
  try {
    tokenmill::run_all(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "ops_linear: %s\n", error.what());
    return 1;
  }
  return 0;
}
