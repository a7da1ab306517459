#include "ops/cpu/linear.h"
namespace tokenmill {
const LinearKernels& linear_kernels_amx() { return linear_kernels_avx512(); }
}  // namespace tokenmill
