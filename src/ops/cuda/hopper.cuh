// Copies of the tensor memory accelerator and the barriers they complete on: sm_90 and later.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace tokenmill {

__device__ inline void init_barrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
// After init_barrier() calls: makes them seen by the copies.
__device__ inline void fence_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// Arrives, and has the phase wait for this many bytes of copies too.
__device__ inline void expect_bytes(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ inline void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Until the phase of this parity has ended.
__device__ inline void wait_barrier(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again_%=:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again_%=;\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
// Whether it has.
__device__ inline bool has_ended(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done;\n"
      "}"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

__device__ inline uint64_t evict_first_policy() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ inline uint64_t evict_last_policy() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// A box of a matrix seen as [row][k / 64][64]: from row `row` and 64-column piece `piece` on. Or of one seen as
// [k / 64][row][64], with row and piece in each other's place.
__device__ inline void copy_box(uint32_t target, const CUtensorMap* map, int piece, int row, uint32_t barrier,
                                uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(target),
      "l"(map), "r"(0), "r"(piece), "r"(row), "r"(barrier), "l"(policy)
      : "memory");
}
// The box that copy_box() takes, into the L2 cache.
__device__ inline void prefetch_box(const CUtensorMap* map, int piece, int row) {
  asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global.tile [%0, {%1, %2, %3}];" ::"l"(map), "r"(0), "r"(piece),
               "r"(row)
               : "memory");
}
// A box of a matrix seen as [k / 64][row][64], to the same place in all blocks of the cluster, whose barriers each
// count its bytes.
template <int kBlocks>
__device__ inline void copy_to_all(uint32_t target, const CUtensorMap* map, int row, int piece, uint32_t barrier,
                                   uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
      ".L2::cache_hint [%0], [%1, {%2, %3, %4}], [%5], %6, %7;" ::"r"(target),
      "l"(map), "r"(0), "r"(row), "r"(piece), "r"(barrier), "h"(static_cast<uint16_t>((1 << kBlocks) - 1)), "l"(policy)
      : "memory");
}
// A box of a matrix seen as [row / 8][k / 64][8][64] (row_groups_map() in tensor_map.h); all of its columns, or those
// from a piece on.
__device__ inline void copy_row_groups(uint32_t target, const CUtensorMap* map, int group, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %2, %2, %3}], [%4];" ::"r"(target),
      "l"(map), "r"(0), "r"(group), "r"(barrier)
      : "memory");
}
__device__ inline void copy_row_groups(uint32_t target, const CUtensorMap* map, int piece, int group, uint32_t barrier,
                                       uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %2, %3, %4}], [%5], %6;" ::"r"(target),
      "l"(map), "r"(0), "r"(piece), "r"(group), "r"(barrier), "l"(policy)
      : "memory");
}

// What the blocks of a cluster do to each other: an address of this block's shared memory in that of another, and
// barriers.
__device__ inline uint32_t cluster_address(uint32_t address, int rank) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}
// Where only reads went before, as of a stage of a ring: at cluster scope a release waits for all of the thread's
// writes to be seen by the whole device (MEMBAR.ALL.GPU), which took more time than a stage.
__device__ inline void hand_back_there(uint32_t barrier, int rank) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(cluster_address(barrier, rank)) : "memory");
}
// Before a barrier that a thread which copies shared memory waits at: makes this thread's writes seen by the copies.
__device__ inline void fence_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Copies shared memory to that of a block of the cluster, and completes on a barrier there.
__device__ inline void copy_there(uint32_t target, uint32_t source, uint32_t bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(target),
      "r"(source), "r"(bytes), "r"(barrier)
      : "memory");
}
__device__ inline void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// The same without an order of memory: for when the blocks have made their barriers (fence_barriers()), and for when
// they may end. In two halves, for what can be done before the others have come.
__device__ inline void arrive_in_cluster() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
__device__ inline void wait_for_cluster() { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }
__device__ inline void meet_cluster() {
  arrive_in_cluster();
  wait_for_cluster();
}

// A stage of a ring of barriers and the parity of its phase.
struct Turn {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void step(int stages) {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

}  // namespace tokenmill
