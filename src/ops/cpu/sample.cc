#include "ops/cpu/sample.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "base/check.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/sample_scan.h"

namespace tokenmill {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

bool inside(int32_t id, int64_t vocab) { return id >= 0 && id < vocab; }

// Step 2. False when an id is outside the vocabulary; so are the two below.
bool apply_penalties(float* logits, int64_t vocab, const SamplingRow& row) {
  const TokenCounts* const counts = row.counts;
  if (counts == nullptr) return true;
  for (const auto& [id, count] : counts->output_ids) {
    if (!inside(id, vocab)) return false;
    logits[id] -= row.frequency_penalty * static_cast<float>(count) + row.presence_penalty;
  }
  if (row.repetition_penalty == 1.0f) return true;
  const float penalty = row.repetition_penalty;
  const auto repeat = [&](int32_t id) { logits[id] = logits[id] > 0 ? logits[id] / penalty : logits[id] * penalty; };
  for (const auto& [id, count] : counts->output_ids) repeat(id);
  for (const int32_t id : counts->prompt_ids) {
    if (!inside(id, vocab)) return false;
    // Ids of both lists are penalised once.
    const auto found = std::lower_bound(counts->output_ids.begin(), counts->output_ids.end(), std::pair(id, 0),
                                        [](const auto& a, const auto& b) { return a.first < b.first; });
    if (found == counts->output_ids.end() || found->first != id) repeat(id);
  }
  return true;
}

bool ban(float* logits, int64_t vocab, const std::vector<int32_t>* ids) {
  if (ids == nullptr) return true;
  for (const int32_t id : *ids) {
    if (!inside(id, vocab)) return false;
    logits[id] = kMinusInfinity;
  }
  return true;
}

// Step 3.
bool apply_bias_and_bans(float* logits, int64_t vocab, const SamplingRow& row) {
  if (row.logit_bias != nullptr) {
    for (const auto& [id, bias] : *row.logit_bias) {
      if (!inside(id, vocab)) return false;
      logits[id] += bias;
    }
  }
  if (!ban(logits, vocab, row.banned_ids) || !ban(logits, vocab, row.banned_ids_more)) return false;
  if (row.allowed_ids == nullptr) return true;
  int64_t next = 0;  // allowed ids are sorted: mask what lies between them
  for (const int32_t id : *row.allowed_ids) {
    if (!inside(id, vocab)) return false;
    if (id < next) continue;
    std::fill(logits + next, logits + id, kMinusInfinity);
    next = id + 1;
  }
  std::fill(logits + next, logits + vocab, kMinusInfinity);
  return true;
}

// Weights lie in (0, 1], whose bit patterns ascend with the value: a bucket is an eighth of a binade.
constexpr int kBucketShift = 20;
constexpr int kBuckets = (0x3f800000 >> kBucketShift) + 1;
int bucket_of(float weight) { return static_cast<int>(std::bit_cast<uint32_t>(weight) >> kBucketShift); }

struct Bucket {
  int64_t count = 0;
  double mass = 0;
};
struct Candidate {
  float weight;
  int32_t id;
};

// Finds where a descending walk over the ranking ends. Only the bucket in which that happens is sorted, and weights
// below kUsualLow are looked at only when a walk gets that far.
class Ranking {
 public:
  Ranking(const float* weights, int64_t vocab, std::byte* scratch)
      : weights_(weights),
        vocab_(vocab),
        buckets_(reinterpret_cast<Bucket*>(scratch)),
        candidates_(reinterpret_cast<Candidate*>(scratch + kBuckets * sizeof(Bucket))) {
    fill_buckets(kUsualLow);
  }

  struct End {
    Cut cut;
    double mass = 0;  // of all kept
  };
  // Keeps ids while fewer than `count` ids and less than `mass` weight are kept; at least one.
  End walk(int64_t count, double mass) {
    int64_t kept = 0;
    double kept_mass = 0;
    for (int index = kBuckets - 1; index >= 0; --index) {
      if (index < bucket_of(low_) && low_ == kUsualLow) fill_buckets(kLowest);
      const Bucket& bucket = buckets_[index];
      if (bucket.count == 0) continue;
      if (kept + bucket.count >= count || kept_mass + bucket.mass >= mass) {
        return walk_bucket(index, count, mass, kept, kept_mass);
      }
      kept += bucket.count;
      kept_mass += bucket.mass;
    }
    return {Cut{}, kept_mass};
  }

 private:
  static constexpr float kUsualLow = 0x1p-10f, kLowest = std::numeric_limits<float>::min();

  void fill_buckets(float low) {
    low_ = low;
    std::fill(buckets_, buckets_ + kBuckets, Bucket{});
    visit_between(weights_, vocab_, low, kMore, [this](int64_t, float weight) {
      Bucket& bucket = buckets_[bucket_of(weight)];
      ++bucket.count;
      bucket.mass += static_cast<double>(weight);
    });
  }

  End walk_bucket(int index, int64_t count, double mass, int64_t kept, double kept_mass) {
    int64_t members = 0;
    const auto begin_of = [](int bucket) {
      return std::bit_cast<float>(static_cast<uint32_t>(bucket) << kBucketShift);
    };
    visit_between(weights_, vocab_, std::max(kLowest, begin_of(index)), begin_of(index + 1),
                  [&](int64_t id, float weight) { candidates_[members++] = {weight, static_cast<int32_t>(id)}; });
    std::sort(candidates_, candidates_ + members, [](const Candidate& a, const Candidate& b) {
      return a.weight > b.weight || (a.weight == b.weight && a.id < b.id);
    });
    int64_t i = 0;
    do {
      ++kept;
      kept_mass += static_cast<double>(candidates_[i++].weight);
    } while (i < members && kept < count && kept_mass < mass);
    return {{candidates_[i - 1].weight, candidates_[i - 1].id}, kept_mass};
  }

  static constexpr float kMore = 2;  // above every weight
  const float* weights_;
  int64_t vocab_;
  Bucket* buckets_;
  Candidate* candidates_;
  float low_ = 0;
};

// Step 5.
Cut find_cut(const float* weights, int64_t vocab, double total, const SamplingRow& row, std::byte* scratch) {
  Cut cut;
  const bool has_top_k = row.top_k > 0 && row.top_k < vocab, has_top_p = row.top_p < 1.0f;
  if (has_top_k || has_top_p) {
    Ranking ranking(weights, vocab, scratch);
    const int64_t count = has_top_k ? row.top_k : vocab;
    const Ranking::End by_count =
        has_top_k ? ranking.walk(count, std::numeric_limits<double>::infinity()) : Ranking::End{cut, total};
    cut = by_count.cut;
    if (has_top_p) cut = ranking.walk(count, static_cast<double>(row.top_p) * by_count.mass).cut;
  }
  if (row.min_p > 0 && row.min_p > cut.weight) cut = Cut{.weight = row.min_p};
  return cut;
}

// Step 6: first by groups of ids, whose sums are kept in scratch, then id by id in the group. The greatest weight is 1,
// so something is kept.
constexpr int64_t kDrawGroup = 512;

int32_t draw(const float* weights, int64_t vocab, const Cut& cut, double uniform, std::byte* scratch) {
  double* const group_mass = reinterpret_cast<double*>(scratch);  // the ranking is done with it
  const int64_t groups = (vocab + kDrawGroup - 1) / kDrawGroup;
  double total = 0;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t begin = group * kDrawGroup;
    total += group_mass[group] = kept_mass(weights, begin, std::min(vocab, begin + kDrawGroup), cut);
  }
  const double target = uniform * total;
  double before = 0;
  int64_t chosen = -1;
  for (int64_t group = 0; group < groups; ++group) {
    if (group_mass[group] == 0) continue;
    if (chosen >= 0) before += group_mass[chosen];
    chosen = group;
    if (before + group_mass[group] > target) break;
  }
  int32_t last = -1;
  for (int64_t id = chosen * kDrawGroup; id < std::min(vocab, (chosen + 1) * kDrawGroup); ++id) {
    if (!cut.keeps(weights[id], id)) continue;
    before += static_cast<double>(weights[id]);
    last = static_cast<int32_t>(id);
    if (before > target) break;
  }
  return last;
}

}  // namespace

size_t sample_scratch_bytes(int64_t vocab) {
  return kBuckets * sizeof(Bucket) + static_cast<size_t>(vocab) * (sizeof(Candidate) + sizeof(float));
}

bool sample_row(float* logits, int64_t vocab, const SamplingRow& row, std::byte* scratch, SampledToken& out) {
  out.token = -1;
  out.invalid = true;
  const bool edited = row.counts != nullptr || row.logit_bias != nullptr || row.banned_ids != nullptr ||
                      row.banned_ids_more != nullptr || row.allowed_ids != nullptr;
  const bool logprobs = row.want_logprob || !out.top_logprobs.empty() || row.logprob_ids != nullptr;
  const auto valid = [](const Peak& peak) { return !peak.nan && std::isfinite(peak.value); };

  // One pass where nothing is asked but the argmax. Edits can hide a NaN, so the raw logits are looked at first.
  Peak peak = find_peak(logits, vocab);
  if (!valid(peak)) return true;
  double log_sum = 0;
  if (logprobs) {
    log_sum = log_sum_exp(logits, vocab, peak.value);
    find_best(logits, vocab, out.top_logprobs);
    for (auto& [id, value] : out.top_logprobs) value = static_cast<float>(static_cast<double>(value) - log_sum);
    for (size_t i = 0; i < out.ids_logprobs.size(); ++i) {
      const int32_t id = (*row.logprob_ids)[i];
      if (!inside(id, vocab)) return false;
      out.ids_logprobs[i] = {id, static_cast<float>(static_cast<double>(logits[id]) - log_sum)};
    }
  }
  // The chosen token's raw logit is looked up at the end, when edits and weights have taken the logits' place.
  float* const raw = reinterpret_cast<float*>(scratch + kBuckets * sizeof(Bucket) + vocab * sizeof(Candidate));
  const bool keep_raw = row.want_logprob && (edited || row.temperature > 0);
  if (keep_raw) std::copy(logits, logits + vocab, raw);
  const float* const source = keep_raw ? raw : logits;
  if (edited) {
    if (!apply_penalties(logits, vocab, row) || !apply_bias_and_bans(logits, vocab, row)) return false;
    peak = find_peak(logits, vocab);
    if (!valid(peak)) return true;
  }
  out.token = peak.id;
  if (row.temperature > 0) {
    const double total = exponentiate(logits, vocab, peak.value, 1.0f / row.temperature);
    const Cut cut = find_cut(logits, vocab, total, row, scratch);
    out.token = draw(logits, vocab, cut, uniform_draw(row.seed, row.sample_index, row.position), scratch);
  }
  if (row.want_logprob) out.logprob = static_cast<float>(static_cast<double>(source[out.token]) - log_sum);
  out.invalid = false;
  return true;
}

void CpuBackend::sample(Matrix logits, std::span<const SamplingRow> rows, std::span<SampledToken> out) {
  TM_CHECK(logits.rows == static_cast<int64_t>(rows.size()) && rows.size() == out.size() && logits.cols >= 1);
  TM_CHECK(logits.dtype == DType::kF32 && logits.cols <= std::numeric_limits<int32_t>::max() - 8);
  bool needs_scratch = false;
  for (size_t i = 0; i < rows.size(); ++i) {
    out[i] = SampledToken{};
    out[i].top_logprobs.resize(static_cast<size_t>(std::clamp<int64_t>(rows[i].top_logprobs, 0, logits.cols)));
    if (rows[i].logprob_ids != nullptr) out[i].ids_logprobs.resize(rows[i].logprob_ids->size());
    needs_scratch = needs_scratch || rows[i].temperature > 0 || rows[i].want_logprob;
  }
  const size_t bytes = needs_scratch ? sample_scratch_bytes(logits.cols) : 0;
  for (int worker = 0; worker < num_threads(); ++worker) worker_scratch(worker, bytes);
  std::atomic<bool> ids_inside{true};
  pool_.parallel_for(logits.rows, [&](int64_t i, int worker) {
    const size_t index = static_cast<size_t>(i);
    if (!sample_row(logits.row<float>(i), logits.cols, rows[index], worker_scratch(worker, bytes), out[index])) {
      ids_inside.store(false, std::memory_order_relaxed);
    }
  });
  TM_CHECK(ids_inside.load());
  for (SampledToken& token : out) {
    if (!token.invalid) continue;
    token = SampledToken{};
    token.invalid = true;
  }
}

}  // namespace tokenmill
