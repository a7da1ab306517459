// The plain streaming kernel of products of up to eight rows, for any card, weight and alignment.
#pragma once

#include "base/check.h"
#include "ops/cuda/activation.cuh"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/launch.cuh"

namespace tokenmill {

constexpr int kGemvWarps = 4;
constexpr int kUnroll = 4;  // 16-byte loads in flight of each weight row and lane

// Weights are read once: they must not push the input out of L1.
__device__ inline uint4 stream_load(const void* address) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(address));
  return value;
}

template <class T>
__device__ inline float dot16(const uint4& a, const uint4& b, float sum) {
  const uint32_t as[4] = {a.x, a.y, a.z, a.w}, bs[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    sum = fmaf(low_of<T>(as[i]), low_of<T>(bs[i]), sum);
    sum = fmaf(high_of<T>(as[i]), high_of<T>(bs[i]), sum);
  }
  return sum;
}
template <>
__device__ inline float dot16<float>(const uint4& a, const uint4& b, float sum) {
  sum = fmaf(__uint_as_float(a.x), __uint_as_float(b.x), sum);
  sum = fmaf(__uint_as_float(a.y), __uint_as_float(b.y), sum);
  sum = fmaf(__uint_as_float(a.z), __uint_as_float(b.z), sum);
  return fmaf(__uint_as_float(a.w), __uint_as_float(b.w), sum);
}

struct GemvArgs {
  const void* weight;
  const void* second;  // gated: up
  const float *bias, *second_bias;
  const void* x;  // [rows, x_stride] in the weight's type, or fp32 that is still to be rounded to it
  int64_t x_stride;
  int64_t stride;  // of weight and second: k padded with zeros, as x is
  int64_t n;
  int rows;
  bool add;
  Activation activation;
  float* out;
  uint16_t* out_half;  // gated: instead of out, unless null; of the weight's type
  int64_t out_stride;
};

// Eight fp32 values rounded to T, or 16 bytes as they are.
template <class T, bool kRound, class X>
__device__ inline uint4 load_input(const X* x) {
  if constexpr (kRound) {
    const float4 low = reinterpret_cast<const float4*>(x)[0], high = reinterpret_cast<const float4*>(x)[1];
    return {pair_of<T>(low.x, low.y), pair_of<T>(low.z, low.w), pair_of<T>(high.x, high.y), pair_of<T>(high.z, high.w)};
  } else {
    return *reinterpret_cast<const uint4*>(x);
  }
}

// A warp computes two weight rows (gated: one of gate, one of up) for all input rows. kM >= rows. The first weights are
// under way before the kernel that makes the input has ended.
template <class T, class X, int kM, bool kGated>
__global__ void __launch_bounds__(32 * kGemvWarps) gemv_kernel(const GemvArgs args) {
  constexpr int kVector = 16 / sizeof(T);
  constexpr bool kRound = sizeof(X) > sizeof(T);
  const int lane = threadIdx.x % 32;
  const int64_t pair = blockIdx.x * int64_t{kGemvWarps} + threadIdx.x / 32;
  const int64_t first = kGated ? pair : 2 * pair;
  let_next_start();
  if (first >= args.n) return;
  const int64_t other = kGated ? first : min(first + 1, args.n - 1);
  const T* const w0 = static_cast<const T*>(args.weight) + first * args.stride;
  const T* const w1 = static_cast<const T*>(kGated ? args.second : args.weight) + other * args.stride;
  const X* x[kM];
#pragma unroll
  for (int m = 0; m < kM; ++m) x[m] = static_cast<const X*>(args.x) + min(m, args.rows - 1) * args.x_stride;

  uint4 a[kUnroll], b[kUnroll];
  const auto load_weights = [&](int64_t begin) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t k = begin + u * 32 * kVector;
      const bool inside = k < args.stride;
      a[u] = inside ? stream_load(w0 + k) : uint4{};
      b[u] = inside ? stream_load(w1 + k) : uint4{};
    }
  };
  float sum0[kM] = {}, sum1[kM] = {};
  int64_t begin = lane * kVector;
  load_weights(begin);
  wait_for_previous();
  while (begin < args.stride) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t k = begin + u * 32 * kVector;
      if (k >= args.stride) break;
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        const uint4 v = load_input<T, kRound>(x[m] + k);
        sum0[m] = dot16<T>(a[u], v, sum0[m]);
        sum1[m] = dot16<T>(b[u], v, sum1[m]);
      }
    }
    begin += 32 * kVector * kUnroll;
    load_weights(begin);
  }
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    float s0 = warp_sum(sum0[m]), s1 = warp_sum(sum1[m]);
    if (lane != 0 || m >= args.rows) continue;
    if (kGated && args.out_half != nullptr) {  // as gated_gemm() does
      s0 = rounded_to<T>(s0);
      s1 = rounded_to<T>(s1);
    }
    if (args.bias != nullptr) s0 += args.bias[first];
    if (kGated) {
      if (args.second_bias != nullptr) s1 += args.second_bias[first];
      const float value = activate(args.activation, s0) * s1;
      if (args.out_half != nullptr) {
        reinterpret_cast<T*>(args.out_half)[m * args.out_stride + first] = from_float<T>(value);
      } else {
        args.out[m * args.out_stride + first] = value;
      }
      continue;
    }
    float* const out = args.out + m * args.out_stride;
    out[first] = args.add ? out[first] + s0 : s0;
    if (first + 1 < args.n) {
      if (args.bias != nullptr) s1 += args.bias[first + 1];
      out[first + 1] = args.add ? out[first + 1] + s1 : s1;
    }
  }
}

template <class T, class X, bool kGated>
void launch_gemv(const GemvArgs& args, cudaStream_t stream, bool early) {
  const int64_t warps = kGated ? args.n : (args.n + 1) / 2;
  const unsigned grid = static_cast<unsigned>((warps + kGemvWarps - 1) / kGemvWarps);
  const auto launch = [&](void (*kernel)(GemvArgs)) {
    launch_early("gemv", kernel, grid, 32 * kGemvWarps, 0, stream, early, args);
  };
  TM_CHECK(args.rows >= 1 && args.rows <= 8);
  if (args.rows == 1) return launch(gemv_kernel<T, X, 1, kGated>);
  if (args.rows == 2) return launch(gemv_kernel<T, X, 2, kGated>);
  if constexpr (sizeof(X) == sizeof(T)) {
    launch(args.rows <= 4 ? gemv_kernel<T, X, 4, kGated> : gemv_kernel<T, X, 8, kGated>);
  } else {
    TM_CHECK(!"unrounded inputs have at most two rows");
  }
}

}  // namespace tokenmill
