// What few_rows_attention.cu and hopper_few_rows_attention.cu share: the query heads of a KV head are the columns of
// products whose rows are keys, then dimensions. Each warp takes 16 keys at a time; what warps, and blocks of the same
// rows, have summed up is merged in the end.
#pragma once

#include "ops/cuda/tensor_attention_core.cuh"

namespace tokenmill {

constexpr int kWarpKeys = 16;
// In powers of two: how far scores may lie above the peak that weights are scaled by. Weights then are up to 256, which
// loses nothing, and nearly all keys leave earlier sums alone.
constexpr float kPeakSlack = 8;

// Dimensions d, d + 1 and their partners half a head further, rotated and rounded.
struct RotatedPairs {
  uint32_t low, high;
};
struct PlainPairs {
  float2 a, b, c, s;
};
template <int kDim>
__device__ PlainPairs load_pairs(const float* head, const float* cos, const float* sin, int d) {
  return {__ldcg(reinterpret_cast<const float2*>(head + d)),
          __ldcg(reinterpret_cast<const float2*>(head + d + kDim / 2)),
          __ldcg(reinterpret_cast<const float2*>(cos + d)), __ldcg(reinterpret_cast<const float2*>(sin + d))};
}
template <class T>
__device__ RotatedPairs rotate(const PlainPairs& p) {
  return {pair_of<T>(p.a.x * p.c.x - p.b.x * p.s.x, p.a.y * p.c.y - p.b.y * p.s.y),
          pair_of<T>(p.b.x * p.c.x + p.a.x * p.s.x, p.b.y * p.c.y + p.a.y * p.s.y)};
}

// load_queries() of a row of one query that is not rotated yet. The block that has its position among its keys also
// writes its key and value to the cache, and calls put_key(d, pairs) and put_value(d, four values) with all of it.
template <int kDim, class W, class PutKey, class PutValue>
__device__ void rotate_queries(const W& work, uint8_t* queries, PutKey&& put_key, PutValue&& put_value) {
  using T = typename W::Value;
  const TensorAttentionArgs& args = work.args;
  const float* const qkv = args.q + work.row.token_begin * args.q_stride;
  const float* const cos = args.cos + work.row.token_begin * args.rope_stride;
  const float* const sin = args.sin + work.row.token_begin * args.rope_stride;
  const int tid = threadIdx.x;
  // The new key and value first, so that all is under way at once.
  const bool has_key = work.has_new() && tid < kDim / 4;
  const bool has_value = work.has_new() && tid >= 64 && tid < 64 + kDim / 4;
  PlainPairs key{};
  float4 value{};
  if (has_key) {
    key = load_pairs<kDim>(qkv + (args.q_heads + work.head) * kDim, cos, sin, tid * 2);
  } else if (has_value) {
    const float* const v = qkv + (args.q_heads + args.kv_heads + work.head) * kDim + (tid - 64) * 4;
    value = __ldcg(reinterpret_cast<const float4*>(v));
  }
  for (int i = tid; i < 16 * (kDim / 4); i += blockDim.x) {
    const int r = i / (kDim / 4), d = i % (kDim / 4) * 2;
    RotatedPairs pairs{};
    if (r < work.count) pairs = rotate<T>(load_pairs<kDim>(qkv + (work.head * args.group + r) * kDim, cos, sin, d));
    *reinterpret_cast<uint32_t*>(queries + swizzled<kDim>(r, d / 8) + d % 8 * 2) = pairs.low;
    *reinterpret_cast<uint32_t*>(queries + swizzled<kDim>(r, (d + kDim / 2) / 8) + d % 8 * 2) = pairs.high;
  }
  if (has_key) {
    const int d = tid * 2;
    const RotatedPairs pairs = rotate<T>(key);
    std::byte* const target = work.key(work.past);
    *reinterpret_cast<uint32_t*>(target + d * 2) = pairs.low;
    *reinterpret_cast<uint32_t*>(target + d * 2 + kDim) = pairs.high;
    put_key(d, pairs);
  } else if (has_value) {
    const int d = (tid - 64) * 4;
    const uint2 bits = {pair_of<T>(value.x, value.y), pair_of<T>(value.z, value.w)};
    *reinterpret_cast<uint2*>(work.key(work.past) + work.value_offset() + d * 2) = bits;
    put_value(d, bits);
  }
}

// A partial result: sums [16][kDim], peaks [16], totals [16].
template <int kDim, class W>
__device__ void merge_splits(const W& work, const float* partials) {
  constexpr int kFloats = kTensorFewRows * (kDim + 2);
  for (int i = threadIdx.x; i < work.count * (kDim / 4); i += blockDim.x) {
    const int r = i / (kDim / 4), d = i % (kDim / 4) * 4;
    float best = kLowest, total = 0;
    float4 v{};
#pragma unroll 8
    for (int s = 0; s < work.item.num_splits; ++s) {
      const float* const partial = partials + s * kFloats;
      const float peak = __ldcg(partial + 16 * kDim + r), sum = __ldcg(partial + 16 * kDim + 16 + r);
      const float4 o = __ldcg(reinterpret_cast<const float4*>(partial + r * kDim + d));
      const float now = fmaxf(best, peak), old = exp2_fast(best - now), factor = exp2_fast(peak - now);
      best = now;
      total = total * old + factor * sum;
      v = {v.x * old + factor * o.x, v.y * old + factor * o.y, v.z * old + factor * o.z, v.w * old + factor * o.w};
    }
    work.put(r, d, v, 1.0f / total);
  }
}

// Sums of one warp, transposed: lane (g, t) has dimensions 16n + g and 16n + g + 8 of queries 2t and 2t + 1 of each
// eight, in the order (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
template <int kDim, int kEights>
struct KeySums {
  float sums[kDim / 16][kEights][4] = {};
  float peak[kEights][2];        // the same in all lanes of a query
  float total[kEights][2] = {};  // of the lane's own keys

  __device__ KeySums() {
#pragma unroll
    for (auto& both : peak) both[0] = both[1] = kLowest;
  }

  // Scores of keys g and g + 8, in the same order.
  __device__ void raise_peaks(const float (&scores)[kEights][4]) {
#pragma unroll
    for (int e = 0; e < kEights; ++e) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float best = fmaxf(peak[e][j], fmaxf(scores[e][j], scores[e][j + 2]));
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2) best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, lanes));
        const float factor = exp2_fast(peak[e][j] - best);
        peak[e][j] = best;
        total[e][j] *= factor;
#pragma unroll
        for (int n = 0; n < kDim / 16; ++n) {
          sums[n][e][j] *= factor;
          sums[n][e][j + 2] *= factor;
        }
      }
    }
  }
};

// 16 keys, of which the first has position `first_key`. q: of queries in rows, as load_query_fragments() gives them.
// key_address(k): where the lane's row of keys (lane % 16) has dimensions 16k, and 8 further in the upper half of the
// warp. value_address(n): where its row of values (lane % 8, and 8 further in the upper half) has dimensions 16n, and 8
// further in odd eights of lanes.
template <int kDim, int kEights, class W, class KeyAddress, class ValueAddress>
__device__ void attend_keys(const W& work, const uint32_t (&q)[kDim / 16][4], int first_key, KeyAddress&& key_address,
                            ValueAddress&& value_address, KeySums<kDim, kEights>& state) {
  using T = typename W::Value;
  const TensorAttentionArgs& args = work.args;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  float halves[2][kEights][4] = {};  // of even and of odd steps: half as long a chain of products
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    uint32_t a[4];
    load_matrices(a, key_address(k));
#pragma unroll
    for (int e = 0; e < kEights; ++e) mma<T>(halves[k % 2][e], a[0], a[1], a[2], a[3], q[k][e], q[k][e + 2]);
  }
  const bool masked =
      args.window > 0 || first_key + kWarpKeys > min(work.end, work.past + work.item.first / args.group + 1);
  const float scale = args.softcap > 0 ? args.scale : args.scale * kLog2e;
  float scores[kEights][4];
  bool is_above = false;
#pragma unroll
  for (int e = 0; e < kEights; ++e) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float& score = scores[e][i];
      score = (halves[0][e][i] + halves[1][e][i]) * scale;
      if (args.softcap > 0) score = args.softcap * tanhf(score / args.softcap) * kLog2e;
      if (masked) {
        const int key = first_key + g + i / 2 * 8, r = e * 8 + 2 * t + i % 2;
        const int position = work.past + (work.item.first + r) / args.group;
        const bool visible =
            r < work.count && key < work.end && key <= position && (args.window == 0 || key > position - args.window);
        if (!visible) score = -INFINITY;
      }
      is_above |= score > state.peak[e][i % 2] + kPeakSlack;
    }
  }
  if (__any_sync(0xffffffffu, is_above)) state.raise_peaks(scores);
  uint32_t weights[kEights][2];
#pragma unroll
  for (int e = 0; e < kEights; ++e) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float a = exp2_fast(scores[e][half * 2] - state.peak[e][0]);
      const float b = exp2_fast(scores[e][half * 2 + 1] - state.peak[e][1]);
      state.total[e][0] += a;
      state.total[e][1] += b;
      weights[e][half] = transposed(pair_of<T>(a, b));
    }
  }
#pragma unroll
  for (int n = 0; n < kDim / 16; ++n) {
    uint32_t a[4];
    load_matrices_transposed(a, value_address(n));
#pragma unroll
    for (int e = 0; e < kEights; ++e) {
      mma<T>(state.sums[n][e], a[0], a[1], a[2], a[3], weights[e][0], weights[e][1]);
    }
  }
}

// The warps' sums in shared memory, [16][kDim] each, and their peaks and totals.
template <int kDim, int kWarps>
struct WarpSums {
  float (*peaks)[16];
  float (*totals)[16];
  float* sums;
  int stride;  // from one warp's to the next one's

  // Runs of eight dimensions change places by the row, so that rows lie in different banks.
  __device__ int at(int warp, int r, int d) const { return warp * stride + r * kDim + (d ^ (r & 7) * 8); }
  template <int kEights>
  __device__ void put(const KeySums<kDim, kEights>& state) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int e = 0; e < kEights; ++e) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float total = state.total[e][j];
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2) total += __shfl_xor_sync(0xffffffffu, total, lanes);
        const int r = e * 8 + 2 * t + j;
        if (g == 0) {
          peaks[warp][r] = state.peak[e][j];
          totals[warp][r] = total;
        }
#pragma unroll
        for (int n = 0; n < kDim / 16; ++n) {
          sums[at(warp, r, n * 16 + g)] = state.sums[n][e][j];
          sums[at(warp, r, n * 16 + g + 8)] = state.sums[n][e][j + 2];
        }
      }
    }
  }

  // Rows of the output where the block saw all keys, else of its partial result.
  template <class W>
  __device__ void write(const W& work, float* partials) const {
    constexpr int kFloats = kTensorFewRows * (kDim + 2);
    for (int i = threadIdx.x; i < work.count * (kDim / 4); i += 32 * kWarps) {
      const int r = i / (kDim / 4), d = i % (kDim / 4) * 4;
      float best = peaks[0][r], total = 0;
#pragma unroll
      for (int w = 1; w < kWarps; ++w) best = fmaxf(best, peaks[w][r]);
      float4 v{};
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float factor = exp2_fast(peaks[w][r] - best);
        const float4 o = *reinterpret_cast<const float4*>(sums + at(w, r, d));
        v = {v.x + factor * o.x, v.y + factor * o.y, v.z + factor * o.z, v.w + factor * o.w};
        total += factor * totals[w][r];
      }
      if (work.item.num_splits == 1) {
        work.put(r, d, v, 1.0f / total);
        continue;
      }
      float* const partial = partials + work.item.split * kFloats;
      __stcg(reinterpret_cast<float4*>(partial + r * kDim + d), v);
      if (d == 0) {
        __stcg(partial + 16 * kDim + r, best);
        __stcg(partial + 16 * kDim + 16 + r, total);
      }
    }
  }
};

// The end of a block: its warps' sums together, and those of all blocks of its rows by the last one.
template <int kDim, int kWarps, class W>
__device__ void finish_block(const W& work, const WarpSums<kDim, kWarps>& warp_sums) {
  __shared__ bool is_last;
  const TensorAttentionArgs& args = work.args;
  constexpr int kFloats = kTensorFewRows * (kDim + 2);
  float* const partials = args.partials + (int64_t{blockIdx.y} * args.num_partials + work.item.partial) * kFloats;
  __syncthreads();
  warp_sums.write(work, partials);
  if (work.item.num_splits == 1) return;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    int* const counter = args.counters + work.item.unit * gridDim.y + blockIdx.y;
    is_last = atomicAdd(counter, 1) == work.item.num_splits - 1;
    if (is_last) *counter = 0;  // as the next call wants it
    __threadfence();
  }
  __syncthreads();
  if (is_last) merge_splits<kDim>(work, partials);
}

}  // namespace tokenmill
