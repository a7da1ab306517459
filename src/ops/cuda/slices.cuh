// How deterministic products cut K, whatever kernel makes them: a row's bits are those of its slices' sums, each in
// order of K, added in order.
#pragma once

namespace tokenmill {

constexpr int kSlices = 4;

// The first piece (64 along K) of a slice, or the end of the last one. An even one, so that a kernel may take two at a
// time.
__device__ inline int slice_begin(int slice, int pieces) { return min(pieces, (pieces + 1) / 2 * slice / kSlices * 2); }

}  // namespace tokenmill
