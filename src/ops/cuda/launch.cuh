// Launches whose blocks may start while the kernel before them in the stream still runs.
//
// A kernel launched so calls wait_for_previous() before it touches anything a kernel before it writes; until then it
// may only read what was there before the step, such as weights. Since each of them waits, whoever waits for the last
// one has waited for all.
#pragma once

#include "ops/cuda/cuda_common.h"

namespace tokenmill {

template <class Args>
void launch_early(const char* name, void (*kernel)(Args), dim3 grid, dim3 block, size_t shared_bytes,
                  cudaStream_t stream, bool early, const Args& args) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = early ? 1 : 0;  // devices before sm_90 do not know it
  check_cuda(cudaLaunchKernelEx(&config, kernel, Args(args)), name);
}

// Lets the next kernel's blocks come as soon as all of this one's have started.
__device__ inline void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ inline void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace tokenmill
