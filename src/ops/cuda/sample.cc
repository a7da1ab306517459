// Sampling on the device, the host's part: requests to what the kernel of sample.cu reads, and its answers back.
#include <algorithm>
#include <limits>
#include <utility>

#include "base/check.h"
#include "ops/cuda/cuda_backend.h"
#include "ops/cuda/sample_args.h"
#include "ops/philox.h"

namespace tokenmill {
namespace {

// The rows' lists side by side, checked against the vocabulary.
class RowLists {
 public:
  explicit RowLists(int64_t vocab) : vocab_(vocab) {}

  SampleList add_ids(std::span<const int32_t> ids) {
    const SampleList list{static_cast<int32_t>(ids_.size()), static_cast<int32_t>(ids.size())};
    for (const int32_t id : ids) add(id, 0);
    return list;
  }
  template <class Value>
  SampleList add_pairs(std::span<const std::pair<int32_t, Value>> pairs) {
    const SampleList list{static_cast<int32_t>(ids_.size()), static_cast<int32_t>(pairs.size())};
    for (const auto& [id, value] : pairs) add(id, static_cast<float>(value));
    return list;
  }
  const std::vector<int32_t>& ids() const { return ids_; }
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
  ids.reserve(counts.output_ids.size() + counts.prompt_ids.size());
  for (const auto& [id, count] : counts.output_ids) ids.push_back(id);
  ids.insert(ids.end(), counts.prompt_ids.begin(), counts.prompt_ids.end());
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

SampleRowArgs row_args(const SamplingRow& row, int64_t vocab, RowLists& lists) {
  SampleRowArgs args{};
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
  if (row.logit_bias != nullptr) {
    TM_CHECK(std::ranges::is_sorted(*row.logit_bias, {}, &std::pair<int32_t, float>::first));
    args.bias = lists.add_pairs(std::span<const std::pair<int32_t, float>>(*row.logit_bias));
  }
  if (row.banned_ids != nullptr) args.banned = lists.add_ids(*row.banned_ids);
  if (row.banned_ids_more != nullptr) {
    const SampleList more = lists.add_ids(*row.banned_ids_more);  // right behind the first list
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

// The kernel's answers: the rows' tokens, then the top ids, their logprobs and the asked ids' logprobs.
void read_answers(const std::byte* host, std::span<const SampleRowArgs> args, std::span<const int32_t> ids, size_t tops,
                  std::span<SampledToken> out) {
  const auto* const host_rows = reinterpret_cast<const SampleRowOut*>(host);
  const auto* const host_top_ids = reinterpret_cast<const int32_t*>(host + args.size() * sizeof(SampleRowOut));
  const auto* const host_tops = reinterpret_cast<const float*>(host_top_ids + tops);
  const float* const host_ids = host_tops + tops;
  for (size_t i = 0; i < args.size(); ++i) {
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
      out[i].ids_logprobs.emplace_back(ids[static_cast<size_t>(args[i].logprob_ids.begin + j)],
                                       host_ids[args[i].ids_begin + j]);
    }
  }
}

}  // namespace

void CudaBackend::sample(Matrix logits, std::span<const SamplingRow> rows, std::span<SampledToken> out) {
  TM_CHECK(rows.size() == out.size());
  launch_sample(logits, rows, 0, static_cast<int32_t>(rows.size()));
  collect_samples(out);
}

void CudaBackend::launch_sample(Matrix logits, std::span<const SamplingRow> rows, int32_t first_slot,
                                int32_t num_slots) {
  TM_CHECK(logits.rows == static_cast<int64_t>(rows.size()) && logits.cols >= 1);
  TM_CHECK(first_slot >= 0 && first_slot + static_cast<int64_t>(rows.size()) <= num_slots);
  TM_CHECK(logits.dtype == DType::kF32 && logits.cols <= std::numeric_limits<int32_t>::max() - 8);
  if (rows.empty()) return;
  use_device();
  if (first_slot == 0 && num_pending_samples_ > 0) {  // of a step whose sampling failed half-way
    TM_CUDA(cudaStreamSynchronize(stream()));
    num_pending_samples_ = 0;
  }
  if (num_pending_samples_ == pending_samples_.size()) pending_samples_.emplace_back();
  PendingSamples& pending = pending_samples_[num_pending_samples_];
  const int64_t vocab = logits.cols;
  RowLists lists(vocab);
  std::vector<SampleRowArgs>& args = pending.rows;
  args.clear();
  size_t tops = 0, ids = 0;
  bool keeps_raw = false;
  for (const SamplingRow& row : rows) {
    SampleRowArgs& one = args.emplace_back(row_args(row, vocab, lists));
    one.top_begin = static_cast<int32_t>(tops);
    one.ids_begin = static_cast<int32_t>(ids);
    tops += static_cast<size_t>(one.top_logprobs);
    ids += static_cast<size_t>(one.logprob_ids.count);
    keeps_raw = keeps_raw || (row.want_logprob && (one.edited || row.temperature > 0));
  }
  sample_upload_.begin();
  const size_t rows_at = sample_upload_.add(std::span<const SampleRowArgs>(args));
  const size_t ids_at = sample_upload_.add(std::span<const int32_t>(lists.ids()));
  const size_t values_at = sample_upload_.add(lists.values());
  sample_upload_.send(stream());

  // In one piece, as read_answers() takes it apart.
  const size_t answer_bytes = rows.size() * sizeof(SampleRowOut) + tops * 8 + ids * 4;
  std::byte* const answers = sample_out_.get<std::byte>(answer_bytes, stream());
  auto* const top_ids = reinterpret_cast<int32_t*>(answers + rows.size() * sizeof(SampleRowOut));
  auto* const top_logprobs = reinterpret_cast<float*>(top_ids + tops);
  // At once for as many as most engines run: growing later would cost the records of graphs.
  constexpr size_t kSlotsMin = 4096;
  int32_t* const slots = token_slots_.get<int32_t>(std::max(kSlotsMin, static_cast<size_t>(num_slots)), stream());
  num_token_slots_ = num_slots;
  const size_t raw_floats = keeps_raw ? rows.size() * static_cast<size_t>(vocab) : 1;
  const SampleArgs kernel{.logits = logits.row<float>(0),
                          .stride = logits.stride,
                          .vocab = static_cast<int>(vocab),
                          .raw = sample_rows_.get<float>(raw_floats, stream()),
                          .rows = sample_upload_.at<SampleRowArgs>(rows_at),
                          .ids = sample_upload_.at<int32_t>(ids_at),
                          .values = sample_upload_.at<float>(values_at),
                          .out = reinterpret_cast<SampleRowOut*>(answers),
                          .slots = slots + first_slot,
                          .top_ids = top_ids,
                          .top_logprobs = top_logprobs,
                          .ids_logprobs = top_logprobs + tops};
  tokenmill::launch_sample(kernel, static_cast<unsigned>(rows.size()), stream());
  std::byte* const host = pending.host.get(answer_bytes);
  TM_CUDA(cudaMemcpyAsync(host, answers, answer_bytes, cudaMemcpyDeviceToHost, stream()));
  TM_CUDA(cudaEventRecord(samples_copied_.get(), stream()));
  pending.ids = lists.ids();
  pending.num_tops = tops;
  ++num_pending_samples_;
}

// Waits for the answers only: the next step may run by now.
void CudaBackend::collect_samples(std::span<SampledToken> out) {
  if (out.empty()) return;
  use_device();
  TM_CUDA(cudaEventSynchronize(samples_copied_.get()));
  size_t first = 0;
  const size_t count = std::exchange(num_pending_samples_, 0);
  for (size_t i = 0; i < count; ++i) {
    const PendingSamples& pending = pending_samples_[i];
    TM_CHECK(first + pending.rows.size() <= out.size());
    read_answers(pending.host.data(), pending.rows, pending.ids, pending.num_tops,
                 out.subspan(first, pending.rows.size()));
    first += pending.rows.size();
  }
  TM_CHECK(first == out.size());
}

}  // namespace tokenmill
