// Tensor core products of bf16 or fp16 (sm_80 and later) and the loads that feed them.
#pragma once

#include <cstdint>

#include "ops/cuda/device_math.cuh"

namespace tokenmill {

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// sums += a [16, 16] b [16, 8]. Lane (g, t) = (lane / 4, lane % 4) holds of a: (g, 2t), (g + 8, 2t), (g, 2t + 8),
// (g + 8, 2t + 8), each with its right neighbour; of b: (2t, g), (2t + 8, g), each with the one below; of the sums:
// (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
template <class T>
__device__ inline void mma(float (&sums)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                           uint32_t b1);
#define TM_MMA(T, type)                                                                                           \
  template <>                                                                                                     \
  __device__ inline void mma<T>(float(&sums)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, \
                                uint32_t b1) {                                                                    \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                                           \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                           \
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                                     \
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));                                         \
  }
TM_MMA(uint16_t, "bf16")
TM_MMA(Float16, "f16")
#undef TM_MMA

__device__ inline uint4 load_shared16(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address));
  return v;
}

// Four 8x8 matrices of 16-bit values; lanes 8i .. 8i + 7 give the rows' addresses of matrix i.
__device__ inline void load_matrices(uint32_t (&m)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address));
}
__device__ inline void load_matrices_transposed(uint32_t (&m)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address));
}

// An 8x8 matrix of 16-bit values, lane (g, t) holding (g, 2t) and (g, 2t + 1), on its other side.
__device__ inline uint32_t transposed(uint32_t m) {
  uint32_t other;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(other) : "r"(m));
  return other;
}

// 16 bytes to shared memory in the background; zeros where not `valid`.
__device__ inline void copy_async16(uint32_t target, const void* source, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(valid ? 16 : 0)
               : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most kLeft of the committed groups are under way.
template <int kLeft>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// Byte offset of a row's 16-byte chunk in a tile of kWidth bf16 columns, swizzled so that eight rows' same chunks lie
// in different banks. kWidth is a multiple of 64.
template <int kWidth>
__device__ inline uint32_t swizzled(int row, int chunk) {
  return static_cast<uint32_t>(row * (kWidth * 2) + ((chunk ^ (row & 7)) * 16));
}

}  // namespace tokenmill
