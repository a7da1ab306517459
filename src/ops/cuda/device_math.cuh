// Small device functions the kernels share. Kernels over 16-bit values are templates: uint16_t stands for bf16, Float16
// for fp16, and what is rounded to fp16 from beyond its range becomes its largest value.
#pragma once

#include <cstdint>

namespace tokenmill {

// Of softmax by powers of two.
constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLowest = -1e30f;  // below every score, and finite: differences of it are no NaN

// Denormal results are zero.
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline float reciprocal_fast(float x) {  // the same
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline float bf16_low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ inline float bf16_high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ inline float bf16_value(uint16_t bits) { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }

// Round to nearest even; NaN stays NaN.
__device__ inline uint16_t to_bf16(float value) {
  const uint32_t bits = __float_as_uint(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

struct Float16 {
  uint16_t bits;
};

// Both rounded to nearest even; a in the low half.
template <class T>
__device__ inline uint32_t pair_of(float a, float b);
template <>
__device__ inline uint32_t pair_of<uint16_t>(float a, float b) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(b), "f"(a));
  return bits;
}
template <>
__device__ inline uint32_t pair_of<Float16>(float a, float b) {
  uint32_t bits;
  asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(b), "f"(a));
  return bits;
}

__device__ inline float f16_value(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

// The low and the high value of a pair.
template <class T>
__device__ inline float low_of(uint32_t pair);
template <>
__device__ inline float low_of<uint16_t>(uint32_t pair) {
  return bf16_low(pair);
}
template <>
__device__ inline float low_of<Float16>(uint32_t pair) {
  return f16_value(static_cast<uint16_t>(pair));
}
template <class T>
__device__ inline float high_of(uint32_t pair);
template <>
__device__ inline float high_of<uint16_t>(uint32_t pair) {
  return bf16_high(pair);
}
template <>
__device__ inline float high_of<Float16>(uint32_t pair) {
  return f16_value(static_cast<uint16_t>(pair >> 16));
}

template <class T>
__device__ inline T from_float(float value);
template <>
__device__ inline float from_float<float>(float value) {
  return value;
}
template <>
__device__ inline uint16_t from_float<uint16_t>(float value) {
  return to_bf16(value);
}
template <>
__device__ inline Float16 from_float<Float16>(float value) {
  return {static_cast<uint16_t>(pair_of<Float16>(value, 0.0f))};
}
__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(uint16_t bits) { return bf16_value(bits); }
__device__ inline float to_float(Float16 value) { return f16_value(value.bits); }

template <class T>
__device__ inline float rounded_to(float value) {
  return to_float(from_float<T>(value));
}

__device__ inline float warp_sum(float value) {
  for (int offset = 16; offset > 0; offset >>= 1) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}
__device__ inline float warp_max(float value) {
  for (int offset = 16; offset > 0; offset >>= 1) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
  return value;
}

// Sum over the block, in every thread. blockDim.x is a multiple of 32, at most 1024; all threads call.
__device__ inline float block_sum(float value) {
  __shared__ float sums[32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  value = warp_sum(value);
  __syncthreads();
  if (lane == 0) sums[warp] = value;
  __syncthreads();
  return warp_sum(lane < warps ? sums[lane] : 0.0f);
}

}  // namespace tokenmill
