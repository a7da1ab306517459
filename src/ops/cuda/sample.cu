// Sampling on the device: one block a row, in the order and with the tie rules of ops/cpu/sample.h.
//
// The same logits give the same token on both: edits and weights are the CPU's, operation for operation, and sums of
// weights are exact but for 2^-61 of their total: a weight is held as an integer number of 2^-shift, with the shift as
// large as the row's total lets a 64-bit sum be. So neither the order of the threads nor the batch changes a result.
// The cut of the ranking is found by radix selection over the weights' bits, ten at a time.
#include <cmath>

#include "ops/cuda/sample_args.h"

namespace tokenmill {
namespace {

constexpr int kThreads = 1024;
constexpr int kBins = 1024, kBinBits = 10;
constexpr int kLevels = 3;  // 30 bits: those of every weight up to 1.0f

struct Peak {
  float value;
  int32_t id;
  bool bad;  // NaN or +inf somewhere, or nothing above -inf
};

// A prefix of the ranking (weight descending, id ascending). Denormal weights are never in it.
struct Cut {
  float weight;
  int32_t last_id;
  __device__ bool keeps(float w, int32_t id) const { return w > weight || (w == weight && id <= last_id); }
};

struct Shared {
  uint64_t mass[kBins];
  int32_t count[kBins];
  uint64_t scan[33];
  float values[32];
  int32_t ids[32];
  int32_t flags[32];
  int32_t chosen_id;
  uint64_t chosen_before;
  int32_t chosen_bin, count_before;
  uint64_t mass_before;
};

__device__ bool better(float value, int32_t id, float than, int32_t than_id) {
  return value > than || (value == than && id < than_id);
}

// The best of what the threads have found.
__device__ Peak join_peaks(float best, int32_t best_id, bool bad, Shared& shared) {
  for (int offset = 16; offset > 0; offset >>= 1) {
    const float other = __shfl_xor_sync(0xffffffffu, best, offset);
    const int32_t other_id = __shfl_xor_sync(0xffffffffu, best_id, offset);
    if (better(other, other_id, best, best_id)) {
      best = other;
      best_id = other_id;
    }
  }
  bad = __any_sync(0xffffffffu, bad);
  __syncthreads();
  if (threadIdx.x % 32 == 0) {
    shared.values[threadIdx.x / 32] = best;
    shared.ids[threadIdx.x / 32] = best_id;
    shared.flags[threadIdx.x / 32] = bad;
  }
  __syncthreads();
  Peak peak{-INFINITY, INT32_MAX, false};
  for (int warp = 0; warp < kThreads / 32; ++warp) {
    peak.bad |= shared.flags[warp] != 0;
    if (better(shared.values[warp], shared.ids[warp], peak.value, peak.id)) {
      peak.value = shared.values[warp];
      peak.id = shared.ids[warp];
    }
  }
  __syncthreads();
  return peak;
}

// The best of the values that come after `below` in the order (value descending, id ascending).
__device__ Peak find_peak(const float* x, int vocab, float below, int32_t below_id, Shared& shared) {
  float best = -INFINITY;
  int32_t best_id = INT32_MAX;
  bool bad = false;
  constexpr int kUnroll = 16;  // loads under way
  for (int first = threadIdx.x; first < vocab; first += kUnroll * kThreads) {
    float values[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int i = first + u * kThreads;
      values[u] = i < vocab ? x[i] : -INFINITY;
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int i = first + u * kThreads;
      const float value = values[u];
      bad |= isnan(value) || value == INFINITY;
      if (i < vocab && better(below, below_id, value, i) && better(value, i, best, best_id)) {
        best = value;
        best_id = i;
      }
    }
  }
  return join_peaks(best, best_id, bad, shared);
}

// The best of all values, of equal ones the first. Bad: one is infinite or no number, or all are excluded.
__device__ Peak find_peak(const float* x, int vocab, Shared& shared) {
  constexpr int kUnroll = 8;  // loads under way
  float best = -INFINITY;
  int32_t best_id = INT32_MAX;
  bool good = true;
  const auto look = [&](float value, int i) {
    good &= value < INFINITY;
    if (value > best) {
      best = value;
      best_id = i;
    }
  };
  const int quads = reinterpret_cast<uintptr_t>(x) % 16 == 0 ? vocab / 4 : 0;
  for (int first = threadIdx.x; first < quads; first += kUnroll * kThreads) {
    float4 values[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int i = first + u * kThreads;
      values[u] =
          i < quads ? reinterpret_cast<const float4*>(x)[i] : float4{-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int i = (first + u * kThreads) * 4;
      look(values[u].x, i);
      look(values[u].y, i + 1);
      look(values[u].z, i + 2);
      look(values[u].w, i + 3);
    }
  }
  for (int i = quads * 4 + static_cast<int>(threadIdx.x); i < vocab; i += kThreads) look(x[i], i);
  Peak peak = join_peaks(best, best_id, !good, shared);
  peak.bad |= peak.value == -INFINITY;
  return peak;
}

// Exclusive prefix sum over the threads in thread order; the total goes to `total`.
__device__ uint64_t block_scan(uint64_t value, uint64_t& total, Shared& shared) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint64_t inclusive = value;
  for (int offset = 1; offset < 32; offset <<= 1) {
    const uint64_t other = __shfl_up_sync(0xffffffffu, inclusive, offset);
    if (lane >= offset) inclusive += other;
  }
  __syncthreads();
  if (lane == 31) shared.scan[warp] = inclusive;
  __syncthreads();
  if (threadIdx.x == 0) {
    uint64_t sum = 0;
    for (int w = 0; w < kThreads / 32; ++w) {
      const uint64_t own = shared.scan[w];
      shared.scan[w] = sum;
      sum += own;
    }
    shared.scan[32] = sum;
  }
  __syncthreads();
  total = shared.scan[32];
  const uint64_t before = shared.scan[warp] + inclusive - value;
  __syncthreads();
  return before;
}

// In a fixed order.
__device__ double block_sum(double sum, Shared& shared) {
  for (int offset = 16; offset > 0; offset >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  double* const sums = reinterpret_cast<double*>(shared.scan);
  __syncthreads();
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  double total = 0;
  for (int warp = 0; warp < kThreads / 32; ++warp) total += sums[warp];
  __syncthreads();
  return total;
}

// log(sum exp(x)).
__device__ double log_sum_exp(const float* x, int vocab, float peak, Shared& shared) {
  double sum = 0;
  for (int i = threadIdx.x; i < vocab; i += kThreads) sum += exp(static_cast<double>(x[i]) - static_cast<double>(peak));
  return static_cast<double>(peak) + log(block_sum(sum, shared));
}

// exp of x <= 0 with the bits of ops/cpu/vector_math.h, where the polynomial comes from.
__device__ float exp_of(float x) {
  constexpr float kLow = -87.0f, kRoundMagic = 12582912.0f;
  const float c = fmaxf(kLow, x);
  const float t = __fmaf_rn(c, 1.44269504f, kRoundMagic);
  const float n = __fsub_rn(t, kRoundMagic);
  float r = __fmaf_rn(n, -0.693359375f, c);
  r = __fmaf_rn(n, 2.12194440e-4f, r);
  float q = __fmaf_rn(0.0013942160876467824f, r, 0.008363775908946991f);
  q = __fmaf_rn(q, r, 0.041666362434625626f);
  q = __fmaf_rn(q, r, 0.16666573286056519f);
  q = __fmaf_rn(q, r, 0.5f);
  const float p = __fadd_rn(__fmaf_rn(__fmul_rn(r, r), q, r), 1.0f);
  const float scale = __uint_as_float((__float_as_uint(t) << 23) + (127u << 23));
  return x < kLow ? 0.0f : __fmul_rn(p, scale);
}

// x = weights exp((x - peak) / temperature). The shift of their sums: below 2^62 all together.
__device__ int exponentiate(float* x, int vocab, float peak, float temperature, Shared& shared) {
  const float inverse = 1.0f / temperature;
  double sum = 0;
  for (int i = threadIdx.x; i < vocab; i += kThreads) {
    const float weight = exp_of(__fmul_rn(__fsub_rn(x[i], peak), inverse));
    x[i] = weight;
    sum += static_cast<double>(weight);
  }
  return 62 - (ilogb(block_sum(sum, shared)) + 1);
}

__device__ bool contains(const int32_t* sorted, int count, int32_t id) {
  int low = 0, high = count;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (sorted[middle] < id) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < count && sorted[low] == id;
}

__device__ void edit(float* x, int vocab, const SampleRowArgs& row, const int32_t* ids, const float* values) {
  for (int i = threadIdx.x; i < row.output.count; i += kThreads) {
    const int at = row.output.begin + i;
    // Each product and difference rounded, as the CPU does.
    const float penalty = __fadd_rn(__fmul_rn(row.frequency_penalty, values[at]), row.presence_penalty);
    x[ids[at]] = __fsub_rn(x[ids[at]], penalty);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < row.repeat.count; i += kThreads) {
    float& value = x[ids[row.repeat.begin + i]];
    value = value > 0 ? __fdiv_rn(value, row.repetition_penalty) : __fmul_rn(value, row.repetition_penalty);
  }
  __syncthreads();
  const int bias_end = row.bias.begin + row.bias.count;
  for (int i = row.bias.begin + static_cast<int>(threadIdx.x); i < bias_end; i += kThreads) {
    const int32_t id = ids[i];
    if (i > row.bias.begin && ids[i - 1] == id) continue;  // an id may come twice, and is one thread's
    for (int j = i; j < bias_end && ids[j] == id; ++j) x[id] = __fadd_rn(x[id], values[j]);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < row.banned.count; i += kThreads) x[ids[row.banned.begin + i]] = -INFINITY;
  if (row.has_allowed) {
    for (int i = threadIdx.x; i < vocab; i += kThreads) {
      if (!contains(ids + row.allowed.begin, row.allowed.count, i)) x[i] = -INFINITY;
    }
  }
  __syncthreads();
}

__device__ uint64_t fixed(float weight, int shift) {
  return __double2ull_rn(ldexp(static_cast<double>(weight), shift));
}

struct End {
  Cut cut;
  uint64_t mass;  // of all kept
};

// Walks down the ranking while fewer than `count` ids and less than `mass` weight are kept; at least one.
__device__ End walk(const float* weights, int vocab, int shift, int64_t count, double mass, Shared& shared) {
  uint32_t prefix = 0;
  int32_t count_before = 0;
  uint64_t mass_before = 0;
  for (int level = 0; level < kLevels; ++level) {
    const int low_bits = kBinBits * (kLevels - 1 - level);
    for (int i = threadIdx.x; i < kBins; i += kThreads) {
      shared.mass[i] = 0;
      shared.count[i] = 0;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < vocab; i += kThreads) {
      const float weight = weights[i];
      const uint32_t bits = __float_as_uint(weight);
      if (weight < 0x1p-126f || (level > 0 && bits >> (low_bits + kBinBits) != prefix)) continue;
      const int bin = bits >> low_bits & (kBins - 1);
      atomicAdd(&shared.count[bin], 1);
      atomicAdd(reinterpret_cast<unsigned long long*>(&shared.mass[bin]), fixed(weight, shift));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int chosen = -1;
      int32_t kept = count_before, kept_chosen = count_before;
      uint64_t kept_mass = mass_before, kept_mass_chosen = mass_before;
      for (int bin = kBins - 1; bin >= 0; --bin) {
        if (shared.count[bin] == 0) continue;
        chosen = bin;  // the last one with members, if the walk never ends
        kept_chosen = kept;
        kept_mass_chosen = kept_mass;
        kept += shared.count[bin];
        kept_mass += shared.mass[bin];
        if (kept >= count || static_cast<double>(kept_mass) >= mass) break;
      }
      shared.chosen_bin = chosen;
      shared.count_before = kept_chosen;
      shared.mass_before = kept_mass_chosen;
    }
    __syncthreads();
    prefix = prefix << kBinBits | static_cast<uint32_t>(shared.chosen_bin);
    count_before = shared.count_before;
    mass_before = shared.mass_before;
    __syncthreads();
  }

  // All members of the last bin have one weight: keep as many of them, in id order, as the bounds ask for.
  const float weight = __uint_as_float(prefix);
  const uint64_t one = fixed(weight, shift);
  const int64_t members = shared.count[prefix & (kBins - 1)];
  __syncthreads();  // the next walk clears the counts
  int64_t keep = max(int64_t{1}, count - count_before);
  if (one > 0 && static_cast<double>(mass_before) + static_cast<double>(one) * static_cast<double>(keep) > mass) {
    const double wanted = ceil((mass - static_cast<double>(mass_before)) / static_cast<double>(one));
    keep = min(keep, max(int64_t{1}, static_cast<int64_t>(wanted)));
  }
  keep = min(keep, members);
  const End whole{{weight, INT32_MAX}, mass_before + one * static_cast<uint64_t>(keep)};
  if (keep == members) return whole;

  const int piece = (vocab + kThreads - 1) / kThreads;
  const int begin = min(vocab, static_cast<int>(threadIdx.x) * piece), end = min(vocab, begin + piece);
  uint64_t own = 0, total = 0;
  for (int i = begin; i < end; ++i) own += weights[i] == weight;
  const uint64_t before = block_scan(own, total, shared);
  if (before < static_cast<uint64_t>(keep) && before + own >= static_cast<uint64_t>(keep)) {
    uint64_t seen = before;
    for (int i = begin; i < end; ++i) {
      seen += weights[i] == weight;
      if (seen == static_cast<uint64_t>(keep)) {
        shared.chosen_id = i;
        break;
      }
    }
  }
  __syncthreads();
  const int32_t last_id = shared.chosen_id;
  __syncthreads();
  return {{weight, last_id}, whole.mass};
}

__device__ Cut find_cut(const float* weights, int vocab, int shift, const SampleRowArgs& row, Shared& shared) {
  Cut cut{0x1p-126f, INT32_MAX};
  const bool has_top_k = row.top_k > 0 && row.top_k < vocab, has_top_p = row.top_p < 1.0f;
  if (has_top_k || has_top_p) {
    const int64_t count = has_top_k ? row.top_k : vocab;
    const End by_count = walk(weights, vocab, shift, count, INFINITY, shared);
    cut = by_count.cut;
    if (has_top_p) {
      cut = walk(weights, vocab, shift, count, static_cast<double>(row.top_p) * static_cast<double>(by_count.mass),
                 shared)
                .cut;
    }
  }
  if (row.min_p > 0 && row.min_p > cut.weight) cut = {row.min_p, INT32_MAX};
  return cut;
}

// The first kept id, in id order, at which the cumulated weight exceeds uniform times the kept weight.
__device__ int32_t draw(const float* weights, int vocab, int shift, const Cut& cut, double uniform, Shared& shared) {
  const int piece = (vocab + kThreads - 1) / kThreads;
  const int begin = min(vocab, static_cast<int>(threadIdx.x) * piece), end = min(vocab, begin + piece);
  uint64_t own = 0, total = 0;
  for (int i = begin; i < end; ++i) {
    if (cut.keeps(weights[i], i)) own += fixed(weights[i], shift);
  }
  const uint64_t before = block_scan(own, total, shared);
  // Less than the total, so that some id passes it.
  const uint64_t target = min(static_cast<uint64_t>(uniform * static_cast<double>(total)), total - 1);
  if (before <= target && before + own > target) {
    uint64_t sum = before;
    for (int i = begin; i < end; ++i) {
      if (cut.keeps(weights[i], i)) sum += fixed(weights[i], shift);
      if (sum > target) {
        shared.chosen_id = i;
        break;
      }
    }
  }
  __syncthreads();
  return shared.chosen_id;
}

__global__ void __launch_bounds__(kThreads) sample_kernel(const SampleArgs args) {
  __shared__ Shared shared;
  const SampleRowArgs row = args.rows[blockIdx.x];
  float* const x = args.logits + blockIdx.x * args.stride;
  float* const raw = args.raw + blockIdx.x * int64_t{args.vocab};
  SampleRowOut& out = args.out[blockIdx.x];
  if (threadIdx.x == 0) {
    out = {-1, 0.0f};
    args.slots[blockIdx.x] = 0;
  }
  // Edits can hide a NaN, so the raw logits are looked at first.
  Peak peak = find_peak(x, args.vocab, shared);
  if (peak.bad) return;
  double log_sum = 0;
  if (row.wants_log_sum) {
    log_sum = log_sum_exp(x, args.vocab, peak.value, shared);
    Peak best = peak;
    for (int i = 0; i < row.top_logprobs; ++i) {
      if (i > 0) best = find_peak(x, args.vocab, best.value, best.id, shared);
      if (threadIdx.x != 0) continue;
      args.top_ids[row.top_begin + i] = best.id;
      args.top_logprobs[row.top_begin + i] = static_cast<float>(static_cast<double>(best.value) - log_sum);
    }
    for (int i = threadIdx.x; i < row.logprob_ids.count; i += kThreads) {
      const float value = x[args.ids[row.logprob_ids.begin + i]];
      args.ids_logprobs[row.ids_begin + i] = static_cast<float>(static_cast<double>(value) - log_sum);
    }
  }
  const bool keep_raw = row.want_logprob && (row.edited || row.temperature > 0);
  if (keep_raw) {
    for (int i = threadIdx.x; i < args.vocab; i += kThreads) raw[i] = x[i];
  }
  __syncthreads();
  if (row.edited) {
    edit(x, args.vocab, row, args.ids, args.values);
    peak = find_peak(x, args.vocab, shared);
    if (peak.bad) return;
  }
  int32_t token = peak.id;
  if (row.temperature > 0) {
    const int shift = exponentiate(x, args.vocab, peak.value, row.temperature, shared);
    const Cut cut = find_cut(x, args.vocab, shift, row, shared);
    token = draw(x, args.vocab, shift, cut, row.uniform, shared);
  }
  if (threadIdx.x != 0) return;
  out.token = token;
  args.slots[blockIdx.x] = token;
  if (row.want_logprob) {
    out.logprob = static_cast<float>(static_cast<double>(keep_raw ? raw[token] : x[token]) - log_sum);
  }
}

}  // namespace

void launch_sample(const SampleArgs& args, unsigned rows, cudaStream_t stream) {
  sample_kernel<<<rows, kThreads, 0, stream>>>(args);
  check_launch("sample");
}

}  // namespace tokenmill
