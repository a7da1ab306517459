// The kernels of linear.h for AVX-512 (quantised: with VNNI).
#include <immintrin.h>

#include <bit>
#include <iterator>

#include "base/check.h"
#include "ops/cpu/linear.h"
#include "ops/cpu/vector_math.h"

#define TM_TARGET_KERNEL "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"
#define TM_KERNEL __attribute__((target(TM_TARGET_KERNEL)))
#define TM_INLINE __attribute__((target(TM_TARGET_KERNEL), always_inline)) inline

// g++ 12's own avx512fintrin.h warns of the undefined operands it uses on purpose (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

namespace tokenmill {
namespace {

#include "ops/cpu/linear_vectors_avx512.h"

#include "ops/cpu/linear_kernels.h"

constexpr BlockFunction kFloat32Functions[] = {float32_block<1, 4>, float32_block<2, 4>, float32_block<3, 4>,
                                               float32_block<4, 4>, float32_block<5, 4>, float32_block<6, 4>};
constexpr int kFloat32Widths[] = {4, 4, 4, 4, 4, 4};
constexpr BlockFunction kBFloat16Functions[] = {bfloat16_block<1, 4>,  bfloat16_block<2, 4>,  bfloat16_block<3, 4>,
                                                bfloat16_block<4, 2>,  bfloat16_block<5, 2>,  bfloat16_block<6, 2>,
                                                bfloat16_block<7, 1>,  bfloat16_block<8, 1>,  bfloat16_block<9, 1>,
                                                bfloat16_block<10, 1>, bfloat16_block<11, 1>, bfloat16_block<12, 1>};
constexpr int kBFloat16Widths[] = {4, 4, 4, 2, 2, 2, 1, 1, 1, 1, 1, 1};

void run_float32(const TileJob& job) {
  run_blocks(job, job.inputs->float32, job.inputs->float32_stride, kFloat32Functions, kFloat32Widths,
             static_cast<int>(std::size(kFloat32Functions)));
}

void run_bfloat16(const TileJob& job) {
  run_blocks(job, job.inputs->rounded, job.inputs->rounded_stride, kBFloat16Functions, kBFloat16Widths,
             static_cast<int>(std::size(kBFloat16Functions)));
}

}  // namespace

const LinearKernels& linear_kernels_avx512() {
  const bool vnni = cpu_features().avx512_vnni;
  static const LinearKernels kernels = {run_float32,
                                        run_bfloat16,
                                        vnni ? run_quantized_any : linear_kernels_avx2().quantized,
                                        gate_all,
                                        vnni ? quantized_group : linear_kernels_avx2().quantized_group,
                                        0};
  return kernels;
}

}  // namespace tokenmill
