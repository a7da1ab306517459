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

// clang-format off: it takes the operands for arguments

// The registers of a lane's sums, by name and as operands.
#define TM_NAMES_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define TM_NAMES_16 TM_NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define TM_NAMES_24 TM_NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define TM_NAMES_32 TM_NAMES_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define TM_NAMES_40 TM_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define TM_NAMES_48 TM_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39" \
  ", %40, %41, %42, %43, %44, %45, %46, %47"
#define TM_NAMES_56 TM_NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define TM_NAMES_60 TM_NAMES_56 ", %56, %57, %58, %59"
#define TM_NAMES_64 TM_NAMES_56 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define TM_NAMES_72 TM_NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define TM_NAMES_96 TM_NAMES_64 \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define TM_NAMES_104 TM_NAMES_96 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define TM_NAMES_128 TM_NAMES_96 \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define TM_R8(i)                                                                                              \
  "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]), "+f"(c[i + 6]), \
      "+f"(c[i + 7])
#define TM_SUMS_8 TM_R8(0)
#define TM_SUMS_16 TM_SUMS_8, TM_R8(8)
#define TM_SUMS_24 TM_SUMS_16, TM_R8(16)
#define TM_SUMS_32 TM_SUMS_24, TM_R8(24)
#define TM_SUMS_40 TM_SUMS_32, TM_R8(32)
#define TM_SUMS_48 TM_SUMS_32, TM_R8(32), TM_R8(40)
#define TM_SUMS_56 TM_SUMS_48, TM_R8(48)
#define TM_SUMS_60 TM_SUMS_56, "+f"(c[56]), "+f"(c[57]), "+f"(c[58]), "+f"(c[59])
#define TM_SUMS_64 TM_SUMS_56, TM_R8(56)
#define TM_SUMS_72 TM_SUMS_64, TM_R8(64)
#define TM_SUMS_96 TM_SUMS_64, TM_R8(64), TM_R8(72), TM_R8(80), TM_R8(88)
#define TM_SUMS_104 TM_SUMS_96, TM_R8(96)
#define TM_SUMS_128 TM_SUMS_96, TM_R8(96), TM_R8(104), TM_R8(112), TM_R8(120)

#define TM_MULTIPLY(before, ...)                   \
  if constexpr (std::is_same_v<T, Float16>) {      \
    asm volatile(before "f16.f16 " __VA_ARGS__);   \
  } else {                                         \
    asm volatile(before "bf16.bf16 " __VA_ARGS__); \
  }

// c (+)= a b^T: a [64, 16], b [columns, 16], both in shared memory; c is [64, columns], `sums` of it a lane's. The
// operands behind these: a, b, add.
#define TM_MULTIPLY_SHARED(sums, columns, a_at, b_at, add_at)                                                \
  template <class T>                                                                                         \
  __device__ inline void multiply_shared(float (&c)[sums], uint64_t a, uint64_t b, int add) {                \
    TM_MULTIPLY("{\n.reg .pred p;\nsetp.ne.b32 p, %" #add_at ", 0;\nwgmma.mma_async.sync.aligned.m64n" #columns \
                "k16.f32.",                                                                                  \
                "{" TM_NAMES_##sums "}, %" #a_at ", %" #b_at ", p, 1, 1, 0, 0;\n}"                           \
                : TM_SUMS_##sums                                                                             \
                : "l"(a), "l"(b), "r"(add));                                                                 \
  }
TM_MULTIPLY_SHARED(8, 16, 8, 9, 10)
TM_MULTIPLY_SHARED(16, 32, 16, 17, 18)
TM_MULTIPLY_SHARED(24, 48, 24, 25, 26)
TM_MULTIPLY_SHARED(32, 64, 32, 33, 34)
TM_MULTIPLY_SHARED(40, 80, 40, 41, 42)
TM_MULTIPLY_SHARED(48, 96, 48, 49, 50)
TM_MULTIPLY_SHARED(56, 112, 56, 57, 58)
TM_MULTIPLY_SHARED(60, 120, 60, 61, 62)
TM_MULTIPLY_SHARED(64, 128, 64, 65, 66)
TM_MULTIPLY_SHARED(72, 144, 72, 73, 74)
TM_MULTIPLY_SHARED(96, 192, 96, 97, 98)
TM_MULTIPLY_SHARED(104, 208, 104, 105, 106)
TM_MULTIPLY_SHARED(128, 256, 128, 129, 130)

// Pieces of 64 columns in shared memory: where the first is, and the bytes from one to the next and from eight rows to
// the next eight.
struct SharedPieces {
  uint32_t address;
  int to_next, to_eight;
};
// c += a b^T over all columns of a stage; beyond the end of K both are zeros.
template <class T, int kPieces, int kSums>
__device__ inline void multiply_pieces(float (&c)[kSums], SharedPieces a, SharedPieces b) {
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      multiply_shared<T>(c, descriptor(a.address + p * a.to_next + k * 32, 16, a.to_eight),
                         descriptor(b.address + p * b.to_next + k * 32, 16, b.to_eight), 1);
    }
  }
}

// c += a b: a [64, 16] in registers, b [16, columns] in shared memory with neighbours along N. The operands behind the
// sums: a, b.
#define TM_MULTIPLY_REGISTERS(sums, columns, a_at, b_at)                                                     \
  template <class T>                                                                                         \
  __device__ inline void multiply_registers(float (&c)[sums], const uint32_t (&a)[4], uint64_t b) {          \
    TM_MULTIPLY("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\nwgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.", \
                "{" TM_NAMES_##sums "}, {" a_at "}, %" #b_at ", p, 1, 1, 1;\n}"                              \
                : TM_SUMS_##sums                                                                             \
                : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                       \
  }
TM_MULTIPLY_REGISTERS(32, 64, "%32, %33, %34, %35", 36)
TM_MULTIPLY_REGISTERS(64, 128, "%64, %65, %66, %67", 68)

// clang-format on
#undef TM_MULTIPLY_REGISTERS
#undef TM_MULTIPLY_SHARED
#undef TM_MULTIPLY
#undef TM_R8
#undef TM_NAMES_8
#undef TM_NAMES_16
#undef TM_NAMES_24
#undef TM_NAMES_32
#undef TM_NAMES_40
#undef TM_NAMES_48
#undef TM_NAMES_56
#undef TM_NAMES_60
#undef TM_NAMES_64
#undef TM_NAMES_72
#undef TM_NAMES_96
#undef TM_NAMES_104
#undef TM_NAMES_128
#undef TM_SUMS_8
#undef TM_SUMS_16
#undef TM_SUMS_24
#undef TM_SUMS_32
#undef TM_SUMS_40
#undef TM_SUMS_48
#undef TM_SUMS_56
#undef TM_SUMS_60
#undef TM_SUMS_64
#undef TM_SUMS_72
#undef TM_SUMS_96
#undef TM_SUMS_104
#undef TM_SUMS_128

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace tokenmill
