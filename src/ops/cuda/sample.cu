// Sampling on the device: one block a row, in the order and with the tie rules of ops/cpu/sample.h.
//
// Sums of weights are exact: a weight in [0, 1] is held as an integer number of 2^-shift, with the shift as large as
// the vocabulary lets a 64-bit sum be. So neither the order of the threads nor the batch changes a result. The cut of
// the ranking is found by radix selection over the weights' bits, ten at a time.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "ops/cuda/cuda_backend.h"
#include "ops/cuda/device_math.cuh"
#include "ops/philox.h"

namespace tokenmill {
namespace {

constexpr int kThreads = 1024;
constexpr int kBins = 1024, kBinBits = 10;
constexpr int kLevels = 3;  // 30 bits: those of every weight up to 1.0f

struct List {
  int32_t begin, count;
};

// A SamplingRow as the kernel reads it; lists are ranges of the step's id and value arrays.
struct RowArgs {
  float temperature, top_p, min_p;
  int32_t top_k;
  float frequency_penalty, presence_penalty, repetition_penalty;
  double uniform;
  List output, repeat, bias, banned, allowed;
  bool has_allowed, edited, want_logprob, wants_log_sum;
  List logprob_ids;
  int32_t top_logprobs;
  int32_t top_begin, ids_begin;  // places of the answers
};

struct RowOut {
  int32_t token;
  float logprob;
};

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

__device__ Peak find_peak(const float* x, int vocab, Shared& shared) {
  Peak peak = find_peak(x, vocab, INFINITY, -1, shared);
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

// log(sum exp(x)). The sums of each thread and warp come in a fixed order.
__device__ double log_sum_exp(const float* x, int vocab, float peak, Shared& shared) {
  double sum = 0;
  for (int i = threadIdx.x; i < vocab; i += kThreads) sum += exp(static_cast<double>(x[i]) - static_cast<double>(peak));
  for (int offset = 16; offset > 0; offset >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  double* const sums = reinterpret_cast<double*>(shared.scan);
  __syncthreads();
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  double total = 0;
  for (int warp = 0; warp < kThreads / 32; ++warp) total += sums[warp];
  __syncthreads();
  return static_cast<double>(peak) + log(total);
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

__device__ void edit(float* x, int vocab, const RowArgs& row, const int32_t* ids, const float* values) {
  for (int i = threadIdx.x; i < row.output.count; i += kThreads) {
    const int at = row.output.begin + i;
    // Each product and difference rounded, as the CPU does.
    const float penalty = __fadd_rn(__fmul_rn(row.frequency_penalty, values[at]), row.presence_penalty);
    x[ids[at]] = __fsub_rn(x[ids[at]], penalty);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < row.repeat.count; i += kThreads) {
    float& value = x[ids[row.repeat.begin + i]];
    value = value > 0 ? value / row.repetition_penalty : value * row.repetition_penalty;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < row.bias.count; i += kThreads) {
    atomicAdd(x + ids[row.bias.begin + i], values[row.bias.begin + i]);  // an id may come twice
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
  return static_cast<uint64_t>(ldexp(static_cast<double>(weight), shift));
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

__device__ Cut find_cut(const float* weights, int vocab, int shift, const RowArgs& row, Shared& shared) {
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

struct SampleArgs {
  float* logits;
  int64_t stride;
  int vocab, shift;
  float* raw;  // [rows, vocab], for rows that want the chosen token's logprob after their logits were changed
  const RowArgs* rows;
  const int32_t* ids;
  const float* values;
  RowOut* out;
  int32_t* top_ids;
  float* top_logprobs;
  float* ids_logprobs;
};

__global__ void __launch_bounds__(kThreads) sample_kernel(const SampleArgs args) {
  __shared__ Shared shared;
  const RowArgs row = args.rows[blockIdx.x];
  float* const x = args.logits + blockIdx.x * args.stride;
  float* const raw = args.raw + blockIdx.x * int64_t{args.vocab};
  RowOut& out = args.out[blockIdx.x];
  if (threadIdx.x == 0) out = {-1, 0.0f};
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
    const float inverse = 1.0f / row.temperature;
    for (int i = threadIdx.x; i < args.vocab; i += kThreads) x[i] = expf((x[i] - peak.value) * inverse);
    __syncthreads();
    const Cut cut = find_cut(x, args.vocab, args.shift, row, shared);
    token = draw(x, args.vocab, args.shift, cut, row.uniform, shared);
  }
  if (threadIdx.x != 0) return;
  out.token = token;
  if (row.want_logprob) {
    out.logprob = static_cast<float>(static_cast<double>(keep_raw ? raw[token] : x[token]) - log_sum);
  }
}

// The rows' lists side by side, checked against the vocabulary.
class RowLists {
 public:
  explicit RowLists(int64_t vocab) : vocab_(vocab) {}

  List add_ids(std::span<const int32_t> ids) {
    const List list{static_cast<int32_t>(ids_.size()), static_cast<int32_t>(ids.size())};
    for (const int32_t id : ids) add(id, 0);
    return list;
  }
  template <class Value>
  List add_pairs(std::span<const std::pair<int32_t, Value>> pairs) {
    const List list{static_cast<int32_t>(ids_.size()), static_cast<int32_t>(pairs.size())};
    for (const auto& [id, value] : pairs) add(id, static_cast<float>(value));
    return list;
  }
  std::span<const int32_t> ids() const { return ids_; }
  std::span<const float> values() const { return values_; }

 private:
  void add(int32_t id, float value) {
    TM_CHECK(id >= 0 && id < vocab_);
    ids_.push_back(id);
    values_.push_back(value);
  }
  int64_t vocab_;
  std::vector<int32_t> ids_;
  std::vector<float> values_;
};

// Ids of both lists are penalised once.
std::vector<int32_t> repeated_ids(const TokenCounts& counts) {
  std::vector<int32_t> ids;
  for (const auto& [id, count] : counts.output_ids) ids.push_back(id);
  ids.insert(ids.end(), counts.prompt_ids.begin(), counts.prompt_ids.end());
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

RowArgs row_args(const SamplingRow& row, int64_t vocab, RowLists& lists) {
  RowArgs args{};
  args.temperature = row.temperature;
  args.top_k = row.top_k;
  args.top_p = row.top_p;
  args.min_p = row.min_p;
  args.uniform = row.temperature > 0 ? uniform_draw(row.seed, row.sample_index, row.position) : 0;
  if (row.counts != nullptr) {
    args.frequency_penalty = row.frequency_penalty;
    args.presence_penalty = row.presence_penalty;
    args.repetition_penalty = row.repetition_penalty;
    args.output = lists.add_pairs(std::span<const std::pair<int32_t, int32_t>>(row.counts->output_ids));
    if (row.repetition_penalty != 1.0f) args.repeat = lists.add_ids(repeated_ids(*row.counts));
  }
  if (row.logit_bias != nullptr)
    args.bias = lists.add_pairs(std::span<const std::pair<int32_t, float>>(*row.logit_bias));
  if (row.banned_ids != nullptr) args.banned = lists.add_ids(*row.banned_ids);
  if (row.banned_ids_more != nullptr) {
    const List more = lists.add_ids(*row.banned_ids_more);  // right behind the first list
    args.banned = {row.banned_ids != nullptr ? args.banned.begin : more.begin, args.banned.count + more.count};
  }
  args.has_allowed = row.allowed_ids != nullptr;
  if (args.has_allowed) args.allowed = lists.add_ids(*row.allowed_ids);
  args.edited = row.counts != nullptr || row.logit_bias != nullptr || row.banned_ids != nullptr ||
                row.banned_ids_more != nullptr || row.allowed_ids != nullptr;
  args.want_logprob = row.want_logprob;
  args.top_logprobs = static_cast<int32_t>(std::clamp<int64_t>(row.top_logprobs, 0, vocab));
  if (row.logprob_ids != nullptr) args.logprob_ids = lists.add_ids(*row.logprob_ids);
  args.wants_log_sum = row.want_logprob || args.top_logprobs > 0 || row.logprob_ids != nullptr;
  return args;
}

}  // namespace

void CudaBackend::sample(Matrix logits, std::span<const SamplingRow> rows, std::span<SampledToken> out) {
  TM_CHECK(logits.rows == static_cast<int64_t>(rows.size()) && rows.size() == out.size() && logits.cols >= 1);
  TM_CHECK(logits.dtype == DType::kF32 && logits.cols <= std::numeric_limits<int32_t>::max() - 8);
  if (rows.empty()) return;
  use_device();
  const int64_t vocab = logits.cols;
  RowLists lists(vocab);
  std::vector<RowArgs> args;
  size_t tops = 0, ids = 0;
  bool keeps_raw = false;
  for (const SamplingRow& row : rows) {
    RowArgs& one = args.emplace_back(row_args(row, vocab, lists));
    one.top_begin = static_cast<int32_t>(tops);
    one.ids_begin = static_cast<int32_t>(ids);
    tops += static_cast<size_t>(one.top_logprobs);
    ids += static_cast<size_t>(one.logprob_ids.count);
    keeps_raw = keeps_raw || (row.want_logprob && (one.edited || row.temperature > 0));
  }
  sample_upload_.begin();
  const size_t rows_at = sample_upload_.add(std::span<const RowArgs>(args));
  const size_t ids_at = sample_upload_.add(lists.ids());
  const size_t values_at = sample_upload_.add(lists.values());
  sample_upload_.send(stream());

  // The answers in one piece: tokens, then the top ids, their logprobs and the asked ids' logprobs.
  const size_t answer_bytes = rows.size() * sizeof(RowOut) + tops * 8 + ids * 4;
  std::byte* const answers = sample_out_.get<std::byte>(answer_bytes, stream());
  auto* const top_ids = reinterpret_cast<int32_t*>(answers + rows.size() * sizeof(RowOut));
  auto* const top_logprobs = reinterpret_cast<float*>(top_ids + tops);
  const size_t raw_floats = keeps_raw ? rows.size() * static_cast<size_t>(vocab) : 1;
  const SampleArgs kernel{.logits = logits.row<float>(0),
                          .stride = logits.stride,
                          .vocab = static_cast<int>(vocab),
                          .shift = 62 - std::bit_width(static_cast<uint64_t>(vocab)),
                          .raw = sample_rows_.get<float>(raw_floats, stream()),
                          .rows = sample_upload_.at<RowArgs>(rows_at),
                          .ids = sample_upload_.at<int32_t>(ids_at),
                          .values = sample_upload_.at<float>(values_at),
                          .out = reinterpret_cast<RowOut*>(answers),
                          .top_ids = top_ids,
                          .top_logprobs = top_logprobs,
                          .ids_logprobs = top_logprobs + tops};
  sample_kernel<<<static_cast<unsigned>(rows.size()), kThreads, 0, stream()>>>(kernel);
  check_launch("sample");
  std::byte* const host = pinned_.get(answer_bytes);
  copy_to_host(host, answers, answer_bytes);

  const auto* const host_rows = reinterpret_cast<const RowOut*>(host);
  const auto* const host_top_ids = reinterpret_cast<const int32_t*>(host + rows.size() * sizeof(RowOut));
  const auto* const host_tops = reinterpret_cast<const float*>(host_top_ids + tops);
  const float* const host_ids = host_tops + tops;
  for (size_t i = 0; i < rows.size(); ++i) {
    out[i] = SampledToken{};
    if (host_rows[i].token < 0) {
      out[i].invalid = true;
      continue;
    }
    out[i].token = host_rows[i].token;
    out[i].logprob = host_rows[i].logprob;
    for (int32_t j = args[i].top_begin; j < args[i].top_begin + args[i].top_logprobs; ++j) {
      out[i].top_logprobs.emplace_back(host_top_ids[j], host_tops[j]);
    }
    for (int32_t j = 0; j < args[i].logprob_ids.count; ++j) {
      out[i].ids_logprobs.emplace_back((*rows[i].logprob_ids)[static_cast<size_t>(j)], host_ids[args[i].ids_begin + j]);
    }
  }
}

}  // namespace tokenmill
