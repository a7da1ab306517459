// Products of a warpgroup (four warps) over matrices of bf16 or fp16 in shared memory: sm_90a. Sums: lane (g, t) of
// warp w holds in c[4 * n + 2 * h + j] row 16 w + g + 8 h and column 8 n + 2 t + j.
#pragma once

#include <cstdint>
#include <type_traits>

#include "ops/cuda/device_math.cuh"

namespace tokenmill {

#if __CUDA_ARCH_FEAT_SM90_ALL

// A matrix in shared memory: 128-byte rows, swizzled, groups of eight rows `stride` bytes apart. `leading`: bytes
// between 64-column pieces, for matrices with neighbours along N.
__device__ inline uint64_t descriptor(uint32_t address, uint32_t leading, uint32_t stride) {
  return (uint64_t{address} & 0x3ffff) >> 4 | uint64_t{leading >> 4} << 16 | uint64_t{stride >> 4} << 32 |
         uint64_t{1} << 62;
}

__device__ inline void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kLeft>
__device__ inline void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}
// Keeps the compiler from moving uses of registers that a product under way writes.
template <int kCount>
__device__ inline void pin(float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(values[i])::"memory");
}

#define TM_R8(a, i)                                                                                           \
  "+f"(a[i]), "+f"(a[i + 1]), "+f"(a[i + 2]), "+f"(a[i + 3]), "+f"(a[i + 4]), "+f"(a[i + 5]), "+f"(a[i + 6]), \
      "+f"(a[i + 7])

#define TM_MULTIPLY(before, ...)                   \
  if constexpr (std::is_same_v<T, Float16>) {      \
    asm volatile(before "f16.f16 " __VA_ARGS__);   \
  } else {                                         \
    asm volatile(before "bf16.bf16 " __VA_ARGS__); \
  }
// clang-format off: it takes the operands for arguments

// c (+)= a b^T: a [64, 16], b [twice the length of c, 16], both in shared memory; c is [64, b's rows].
template <class T>
__device__ inline void multiply_shared(float (&c)[8], uint64_t a, uint64_t b, int add) {
  TM_MULTIPLY(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %10, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.",
      "{%0, %1, %2, %3, %4, %5, %6, %7}, "
      "%8, %9, p, 1, 1, 0, 0;\n}"
      : TM_R8(c, 0)
      : "l"(a), "l"(b), "r"(add));
}
template <class T>
__device__ inline void multiply_shared(float (&c)[16], uint64_t a, uint64_t b, int add) {
  TM_MULTIPLY(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.",
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
      "%16, %17, p, 1, 1, 0, 0;\n}"
      : TM_R8(c, 0), TM_R8(c, 8)
      : "l"(a), "l"(b), "r"(add));
}
template <class T>
__device__ inline void multiply_shared(float (&c)[32], uint64_t a, uint64_t b, int add) {
  TM_MULTIPLY(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.",
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, "
      "%23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "%32, %33, p, 1, 1, 0, 0;\n}"
      : TM_R8(c, 0), TM_R8(c, 8), TM_R8(c, 16), TM_R8(c, 24)
      : "l"(a), "l"(b), "r"(add));
}
template <class T>
__device__ inline void multiply_shared(float (&c)[64], uint64_t a, uint64_t b, int add) {
  TM_MULTIPLY(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.",
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, "
      "%23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, "
      "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, p, 1, 1, 0, 0;\n}"
      : TM_R8(c, 0), TM_R8(c, 8), TM_R8(c, 16), TM_R8(c, 24), TM_R8(c, 32), TM_R8(c, 40), TM_R8(c, 48), TM_R8(c, 56)
      : "l"(a), "l"(b), "r"(add));
}
template <class T>
__device__ inline void multiply_shared(float (&c)[24], uint64_t a, uint64_t b, int add) {
  TM_MULTIPLY(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %26, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n48k16.f32.",
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
      "%22, %23}, "
      "%24, %25, p, 1, 1, 0, 0;\n}"
      : TM_R8(c, 0), TM_R8(c, 8), TM_R8(c, 16)
      : "l"(a), "l"(b), "r"(add));
}
template <class T>
__device__ inline void multiply_shared(float (&c)[48], uint64_t a, uint64_t b, int add) {
  TM_MULTIPLY(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %50, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n96k16.f32.",
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, "
      "%42, %43, %44, %45, %46, %47}, "
      "%48, %49, p, 1, 1, 0, 0;\n}"
      : TM_R8(c, 0), TM_R8(c, 8), TM_R8(c, 16), TM_R8(c, 24), TM_R8(c, 32), TM_R8(c, 40)
      : "l"(a), "l"(b), "r"(add));
}
template <class T>
__device__ inline void multiply_shared(float (&c)[56], uint64_t a, uint64_t b, int add) {
  TM_MULTIPLY(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %58, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n112k16.f32.",
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, "
      "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55}, "
      "%56, %57, p, 1, 1, 0, 0;\n}"
      : TM_R8(c, 0), TM_R8(c, 8), TM_R8(c, 16), TM_R8(c, 24), TM_R8(c, 32), TM_R8(c, 40), TM_R8(c, 48)
      : "l"(a), "l"(b), "r"(add));
}
// c += a b: a [64, 16] in registers, b [16, 128] or [16, 64] in shared memory with neighbours along N.
template <class T>
__device__ inline void multiply_registers(float (&c)[64], const uint32_t (&a)[4], uint64_t b) {
  TM_MULTIPLY(
      "{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.",
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, "
      "%46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}"
      : TM_R8(c, 0), TM_R8(c, 8), TM_R8(c, 16), TM_R8(c, 24), TM_R8(c, 32), TM_R8(c, 40), TM_R8(c, 48), TM_R8(c, 56)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
template <class T>
__device__ inline void multiply_registers(float (&c)[32], const uint32_t (&a)[4], uint64_t b) {
  TM_MULTIPLY(
      "{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.",
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}"
      : TM_R8(c, 0), TM_R8(c, 8), TM_R8(c, 16), TM_R8(c, 24)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// clang-format on
#undef TM_MULTIPLY
#undef TM_R8

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace tokenmill
