// Launches whose blocks may start while the kernel before them in the stream still runs.
//
// A kernel launched so calls wait_for_previous() before it touches anything a kernel before it writes; until then it
// may only read what was there before the step, such as weights. Since each of them waits, whoever waits for the last
// one has waited for all.
#pragma once

#include "ops/cuda/cuda_common.h"

namespace tokenmill {

// early: may start so (sm_90 and later; devices before do not know it). cluster: blocks to one; 1: no clusters.
struct LaunchConfig {
  LaunchConfig(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, bool early, int cluster) {
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = attributes;
    if (early) {
      cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attribute.val.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster > 1) {
      cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = static_cast<unsigned>(cluster);
      attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    }
  }
  LaunchConfig(const LaunchConfig&) = delete;  // config points to attributes
  LaunchConfig& operator=(const LaunchConfig&) = delete;

  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = {};
};

template <class Args>
void launch_early(const char* name, void (*kernel)(Args), dim3 grid, dim3 block, size_t shared_bytes,
                  cudaStream_t stream, bool early, const Args& args) {
  const LaunchConfig launch(grid, block, shared_bytes, stream, early, 1);
  check_cuda(cudaLaunchKernelEx(&launch.config, kernel, Args(args)), name);
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
