#include "cli/roofs.h"

#include <immintrin.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace tokenmill::cli {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Runs work(thread) on every thread at once, three rounds; the best round's wall time in seconds.
double best_time(int num_threads, const std::function<void(int)>& work) {
  constexpr int kRounds = 3;
  double best = 1e300;
  Clock::time_point start;
  int round_marks = 0;
  // The completion runs alone, between a round's end and the next one's start.
  std::barrier gate(num_threads, [&]() noexcept {
    if (round_marks++ > 0) best = std::min(best, seconds_since(start));
    start = Clock::now();
  });
  std::vector<std::thread> threads;
  for (int t = 0; t < num_threads; ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < kRounds; ++round) {
        gate.arrive_and_wait();
        work(t);
      }
      gate.arrive_and_wait();
    });
  }
  for (std::thread& thread : threads) thread.join();
  return best;
}

constexpr size_t kReadBytes = size_t{256} << 20;  // a thread; far more than a share of any cache

struct Unmap {
  void operator()(std::byte* memory) const { munmap(memory, kReadBytes); }
};

// Four streams with prefetch: what a weight-streaming kernel can hope for.
__attribute__((target("avx2"))) uint64_t read_all(const std::byte* data) {
  constexpr size_t kStream = kReadBytes / 4;
  __m256i sum[4] = {};
  for (size_t at = 0; at < kStream; at += 64) {
    for (size_t s = 0; s < 4; ++s) {
      const std::byte* line = data + s * kStream + at;
      _mm_prefetch(reinterpret_cast<const char*>(line) + 512, _MM_HINT_T0);
      sum[s] = _mm256_xor_si256(sum[s], _mm256_load_si256(reinterpret_cast<const __m256i*>(line)));
      sum[s] = _mm256_xor_si256(sum[s], _mm256_load_si256(reinterpret_cast<const __m256i*>(line + 32)));
    }
  }
  const __m256i all = _mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]), _mm256_xor_si256(sum[2], sum[3]));
  return static_cast<uint64_t>(_mm256_extract_epi64(all, 0) ^ _mm256_extract_epi64(all, 3));
}

double measure_read(int num_threads) {
  std::vector<std::unique_ptr<std::byte, Unmap>> buffers;
  for (int t = 0; t < num_threads; ++t) {
    void* memory = mmap(nullptr, kReadBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return 0;
    madvise(memory, kReadBytes, MADV_HUGEPAGE);
    std::memset(memory, t + 1, kReadBytes);
    buffers.emplace_back(static_cast<std::byte*>(memory));
  }
  std::vector<uint64_t> sinks(static_cast<size_t>(num_threads) * 8);
  const double seconds = best_time(
      num_threads, [&](int t) { sinks[static_cast<size_t>(t) * 8] = read_all(buffers[static_cast<size_t>(t)].get()); });
  // Used, so that the reads cannot be left out.
  asm volatile("" ::"r"(sinks.data()) : "memory");
  return static_cast<double>(kReadBytes) * num_threads / seconds;
}

constexpr int64_t kSteps = 4'000'000;

// The loops below keep twelve or more independent accumulators in registers; the empty asm keeps them alive there.
__attribute__((target("avx2,fma"))) void fma_avx2() {
  __m256 acc[12], a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(0.25f);
  for (auto& x : acc) x = _mm256_setzero_ps();
  for (int64_t i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
    for (auto& x : acc) x = _mm256_fmadd_ps(a, b, x);
    asm volatile("" : "+x"(a), "+x"(b));
  }
  for (auto& x : acc) asm volatile("" ::"x"(x));
}
constexpr double kFmaAvx2Ops = 12.0 * 8 * 2;

__attribute__((target("avx512f"))) void fma_avx512() {
  __m512 acc[16], a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(0.25f);
  for (auto& x : acc) x = _mm512_setzero_ps();
  for (int64_t i = 0; i < kSteps; ++i) {
#pragma GCC unroll 16
    for (auto& x : acc) x = _mm512_fmadd_ps(a, b, x);
    asm volatile("" : "+v"(a), "+v"(b));
  }
  for (auto& x : acc) asm volatile("" ::"v"(x));
}
constexpr double kFmaAvx512Ops = 16.0 * 16 * 2;

__attribute__((target("avx512f,avx512vnni"))) void dot_int8() {
  __m512i acc[16], a = _mm512_set1_epi8(1), b = _mm512_set1_epi8(2);
  for (auto& x : acc) x = _mm512_setzero_si512();
  for (int64_t i = 0; i < kSteps; ++i) {
#pragma GCC unroll 16
    for (auto& x : acc) x = _mm512_dpbusd_epi32(x, a, b);
    asm volatile("" : "+v"(a), "+v"(b));
  }
  for (auto& x : acc) asm volatile("" ::"v"(x));
}
constexpr double kInt8Ops = 16.0 * 64 * 2;

__attribute__((target("avx512f,avx512bf16"))) void dot_bf16() {
  __m512 acc[16];
  __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.5f)), b = a;
  for (auto& x : acc) x = _mm512_setzero_ps();
  for (int64_t i = 0; i < kSteps; ++i) {
#pragma GCC unroll 16
    for (auto& x : acc) x = _mm512_dpbf16_ps(x, a, b);
    asm volatile("" : "+v"(a), "+v"(b));
  }
  for (auto& x : acc) asm volatile("" ::"v"(x));
}
constexpr double kBf16Ops = 16.0 * 32 * 2;

// Linux gives the tile registers to a process that asks once (ARCH_REQ_XCOMP_PERM of XTILEDATA).
bool tiles_allowed() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {};
  uint8_t rows[16] = {};
};

template <bool kInt8>
__attribute__((target("amx-tile,amx-int8,amx-bf16"))) void dot_tiles() {
  TileConfig config;
  for (int t = 0; t < 8; ++t) {
    config.bytes_per_row[t] = 64;
    config.rows[t] = 16;
  }
  asm volatile("" ::"r"(&config) : "memory");  // g++ 12 thinks that only 8 bytes are read
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int64_t i = 0; i < kSteps / 16; ++i) {
    if constexpr (kInt8) {
      _tile_dpbssd(0, 4, 6);
      _tile_dpbssd(1, 4, 7);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    } else {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_release();
}
constexpr double kTileInt8Ops = 4.0 * 16 * 16 * 64 * 2 / 16, kTileBf16Ops = 4.0 * 16 * 16 * 32 * 2 / 16;

double rate(int num_threads, void (*loop)(), double ops_per_step) {
  const double seconds = best_time(num_threads, [&](int) { loop(); });
  return ops_per_step * static_cast<double>(kSteps) * num_threads / seconds;
}

}  // namespace

Roofs measure_roofs(int num_threads) {
  Roofs roofs;
  roofs.read_bytes_per_s = measure_read(num_threads);
  const bool avx512 = __builtin_cpu_supports("avx512f");
  roofs.fma_flops = avx512 ? rate(num_threads, fma_avx512, kFmaAvx512Ops) : rate(num_threads, fma_avx2, kFmaAvx2Ops);
  if (__builtin_cpu_supports("avx512bf16")) roofs.bf16_dot_flops = rate(num_threads, dot_bf16, kBf16Ops);
  if (__builtin_cpu_supports("avx512vnni")) roofs.int8_dot_ops = rate(num_threads, dot_int8, kInt8Ops);
  if (__builtin_cpu_supports("amx-int8") && __builtin_cpu_supports("amx-bf16") && tiles_allowed()) {
    roofs.amx_bf16_flops = rate(num_threads, dot_tiles<false>, kTileBf16Ops);
    roofs.amx_int8_ops = rate(num_threads, dot_tiles<true>, kTileInt8Ops);
  }
  return roofs;
}

}  // namespace tokenmill::cli
