#include "models/naive_backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "base/check.h"
#include "ops/dequantize.h"

namespace tokenmill {

namespace {

struct NaiveWeight final : Weight {
  std::vector<float> values;  // [n, k]
  std::vector<float> bias;    // [n] or empty
};

const NaiveWeight& naive(const Weight& weight) { return static_cast<const NaiveWeight&>(weight); }

void norm_row(const float* x, int64_t size, const Norm& norm, float* out) {
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += double{x[i]} * x[i];
  const double scale = 1 / std::sqrt(sum / static_cast<double>(size) + double{norm.eps});
  for (int64_t i = 0; i < size; ++i) out[i] = static_cast<float>(x[i] * scale * norm.weight[i]);
}

std::vector<float> normed(Matrix x, int64_t row, const Norm* norm) {
  std::vector<float> values(x.row<float>(row), x.row<float>(row) + x.cols);
  if (norm) norm_row(x.row<float>(row), x.cols, *norm, values.data());
  return values;
}

double dot(const float* a, const float* b, int64_t size) {
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += double{a[i]} * b[i];
  return sum;
}

double product(const NaiveWeight& weight, int64_t n, const std::vector<float>& x) {
  const double bias = weight.bias.empty() ? 0.0 : double{weight.bias[static_cast<size_t>(n)]};
  return dot(&weight.values[static_cast<size_t>(n * weight.k)], x.data(), weight.k) + bias;
}

double activate(Activation activation, double x) {
  if (activation == Activation::kSilu) return x / (1 + std::exp(-x));
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

void rotate(float* head, const RopeTable& rope, int64_t token) {
  const int64_t half = rope.cos.cols;
  for (int64_t i = 0; i < half; ++i) {
    const double c = rope.cos.row<float>(token)[i], s = rope.sin.row<float>(token)[i], a = head[i], b = head[i + half];
    head[i] = static_cast<float>(a * c - b * s);
    head[i + half] = static_cast<float>(b * c + a * s);
  }
}

}  // namespace

std::byte* NaiveBackend::allocate(size_t bytes) {
  auto memory = std::make_unique<std::byte[]>(std::max<size_t>(bytes, 1));  // zero-filled
  std::byte* data = memory.get();
  memory_.emplace(data, std::move(memory));
  return data;
}

void NaiveBackend::free(std::byte* memory) { TM_CHECK(memory_.erase(memory) == 1); }
void NaiveBackend::copy_to_host(void* target, const void* source, size_t bytes) { std::memcpy(target, source, bytes); }
void NaiveBackend::copy_from_host(void* target, const void* source, size_t bytes) {
  std::memcpy(target, source, bytes);
}

// What was released is undefined: NaN shows whoever reads it.
void NaiveBackend::release_pages(std::byte* memory, size_t bytes) { std::memset(memory, 0xff, bytes); }

std::unique_ptr<Weight> NaiveBackend::pack(std::span<const RawTensor* const> parts, std::span<const float> bias,
                                           Packing) {
  auto weight = std::make_unique<NaiveWeight>();
  weight->k = parts[0]->cols();
  for (const RawTensor* part : parts) {
    TM_CHECK(part->cols() == weight->k);
    weight->name += (weight->name.empty() ? "" : "+") + part->name;
    weight->values.resize(static_cast<size_t>((weight->n + part->rows()) * weight->k));
    for (int64_t r = 0; r < part->rows(); ++r) {
      dequantize_row(part->type, part->data + static_cast<size_t>(r) * part->row_bytes(), part->cols(),
                     &weight->values[static_cast<size_t>((weight->n + r) * weight->k)]);
    }
    weight->n += part->rows();
  }
  TM_CHECK(bias.empty() || static_cast<int64_t>(bias.size()) == weight->n);
  weight->bias.assign(bias.begin(), bias.end());
  weight->bytes = (weight->values.size() + weight->bias.size()) * sizeof(float);
  return weight;
}

void NaiveBackend::plan(const Batch& batch, int32_t page_size) {
  rows_ = batch.rows;
  block_tables_ = batch.block_tables;
  window_tables_ = batch.window_tables;
  for (const BatchRow& row : rows_) {
    TM_CHECK(row.q_len >= 1 && row.kv_len >= row.q_len);
    TM_CHECK(row.num_blocks == (row.kv_len + page_size - 1) / page_size);
  }
}

void NaiveBackend::embed(std::span<const int32_t> ids, const Weight& table, float scale, Matrix out) {
  for (size_t i = 0; i < ids.size(); ++i) {
    TM_CHECK(ids[i] >= 0 && ids[i] < table.n);
    for (int64_t c = 0; c < table.k; ++c) {
      out.row<float>(static_cast<int64_t>(i))[c] =
          naive(table).values[static_cast<size_t>(ids[i] * table.k + c)] * scale;
    }
  }
}

void NaiveBackend::gather_rows(Matrix x, std::span<const int32_t> rows, Matrix out) {
  for (size_t i = 0; i < rows.size(); ++i) {
    std::copy_n(x.row<float>(rows[i]), x.cols, out.row<float>(static_cast<int64_t>(i)));
  }
}

void NaiveBackend::rms_norm(Matrix x, const Norm& norm, Matrix out) {
  for (int64_t r = 0; r < x.rows; ++r) norm_row(x.row<float>(r), x.cols, norm, out.row<float>(r));
}

void NaiveBackend::add_rms_norm(Matrix x, const Norm& norm, Matrix sum) {
  for (int64_t r = 0; r < x.rows; ++r) {
    const std::vector<float> values = normed(x, r, &norm);
    for (int64_t c = 0; c < x.cols; ++c) sum.row<float>(r)[c] += values[static_cast<size_t>(c)];
  }
}

void NaiveBackend::linear(const LinearArgs& args) {
  TM_CHECK(args.x.data != args.out.data && args.x.cols == args.weight->k && args.out.cols == args.weight->n);
  for (int64_t r = 0; r < args.x.rows; ++r) {
    const std::vector<float> x = normed(args.x, r, args.input_norm);
    for (int64_t n = 0; n < args.weight->n; ++n) {
      float& out = args.out.row<float>(r)[n];
      out = static_cast<float>(product(naive(*args.weight), n, x) + (args.add_to_out ? double{out} : 0.0));
    }
  }
}

void NaiveBackend::gated_linear(const GatedLinearArgs& args) {
  TM_CHECK(args.x.data != args.out.data && args.gate->n == args.out.cols && args.up->n == args.out.cols);
  for (int64_t r = 0; r < args.x.rows; ++r) {
    const std::vector<float> x = normed(args.x, r, args.input_norm);
    for (int64_t n = 0; n < args.gate->n; ++n) {
      args.out.row<float>(r)[n] = static_cast<float>(activate(args.activation, product(naive(*args.gate), n, x)) *
                                                     product(naive(*args.up), n, x));
    }
  }
}

void NaiveBackend::rope_table(std::span<const int32_t> positions, std::span<const float> inv_freq, float factor,
                              RopeTable out) {
  for (size_t t = 0; t < positions.size(); ++t) {
    for (size_t i = 0; i < inv_freq.size(); ++i) {
      const float angle = static_cast<float>(positions[t]) * inv_freq[i];
      out.cos.row<float>(static_cast<int64_t>(t))[i] = static_cast<float>(std::cos(double{angle}) * factor);
      out.sin.row<float>(static_cast<int64_t>(t))[i] = static_cast<float>(std::sin(double{angle}) * factor);
    }
  }
}

float* NaiveBackend::kv_slot(const KvLayer& kv, const BatchRow& row, int32_t position, int part, int32_t head) const {
  const std::vector<int32_t>& tables = kv.group == KvGroup::kWindow ? window_tables_ : block_tables_;
  const int32_t block = tables.at(static_cast<size_t>(row.block_begin + position / kv.page_size));
  TM_CHECK(block >= 0 && block < kv.num_blocks);
  const int64_t slot = (int64_t{position % kv.page_size} * 2 + part) * kv.kv_heads + head;
  return reinterpret_cast<float*>(kv.base + block * kv.block_bytes) + slot * kv.head_dim;
}

void NaiveBackend::rope_kv_write(const RopeKvArgs& args) {
  const int32_t dim = args.kv.head_dim;
  for (const BatchRow& row : rows_) {
    for (int32_t i = 0; i < row.q_len; ++i) {
      const int64_t token = row.token_begin + i;
      float* heads = args.qkv.row<float>(token);
      for (int32_t h = 0; h < args.q_heads + args.kv.kv_heads; ++h) {
        const Norm* norm = h < args.q_heads ? args.q_norm : args.k_norm;
        if (norm) norm_row(heads + h * dim, dim, *norm, heads + h * dim);
        if (args.rope) rotate(heads + h * dim, *args.rope, token);
      }
      const int32_t position = row.kv_len - row.q_len + i;
      for (int32_t h = 0; h < args.kv.kv_heads; ++h) {
        std::copy_n(heads + (args.q_heads + h) * dim, dim, kv_slot(args.kv, row, position, 0, h));
        std::copy_n(heads + (args.q_heads + args.kv.kv_heads + h) * dim, dim, kv_slot(args.kv, row, position, 1, h));
      }
    }
  }
}

void NaiveBackend::attention(const AttentionArgs& args) {
  const int32_t dim = args.kv.head_dim, group = args.q_heads / args.kv.kv_heads;
  for (const BatchRow& row : rows_) {
    for (int32_t i = 0; i < row.q_len; ++i) {
      const int32_t position = row.kv_len - row.q_len + i;
      const int32_t first = args.window > 0 ? std::max(0, position - args.window + 1) : 0;
      for (int32_t h = 0; h < args.q_heads; ++h) {
        const float* q = args.q.row<float>(row.token_begin + i) + h * dim;
        std::vector<double> scores;
        for (int32_t j = first; j <= position; ++j) {
          double score = dot(q, kv_slot(args.kv, row, j, 0, h / group), dim) * args.scale;
          if (args.softcap > 0) score = args.softcap * std::tanh(score / args.softcap);
          scores.push_back(score);
        }
        const double best = *std::max_element(scores.begin(), scores.end());
        std::vector<double> sum(static_cast<size_t>(dim));
        double total = 0;
        for (int32_t j = first; j <= position; ++j) {
          const double p = std::exp(scores[static_cast<size_t>(j - first)] - best);
          total += p;
          const float* v = kv_slot(args.kv, row, j, 1, h / group);
          for (int32_t d = 0; d < dim; ++d) sum[static_cast<size_t>(d)] += p * v[d];
        }
        float* out = args.out.row<float>(row.token_begin + i) + h * dim;
        for (int32_t d = 0; d < dim; ++d) out[d] = static_cast<float>(sum[static_cast<size_t>(d)] / total);
      }
    }
  }
}

void NaiveBackend::softcap(Matrix x, float cap) {
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t c = 0; c < x.cols; ++c) {
      float& value = x.row<float>(r)[c];
      value = static_cast<float>(cap * std::tanh(double{value} / cap));
    }
  }
}

int64_t NaiveBackend::kv_block_bytes(int32_t kv_heads, int32_t head_dim, int32_t page_size, DType) const {
  return int64_t{page_size} * 2 * kv_heads * head_dim * static_cast<int64_t>(sizeof(float));
}

void NaiveBackend::copy_blocks(const KvLayer& kv, std::span<const BlockCopy> copies) {
  const size_t row_bytes = static_cast<size_t>(kv.block_bytes / kv.page_size);
  for (const BlockCopy& copy : copies) {
    std::memcpy(kv.base + copy.target_block * kv.block_bytes, kv.base + copy.source_block * kv.block_bytes,
                row_bytes * static_cast<size_t>(copy.num_rows));
  }
}

// Greedy rows only: the order of penalties and filters is tests/ops' to check, and no model test draws.
void NaiveBackend::sample(Matrix logits, std::span<const SamplingRow> rows, std::span<SampledToken> out) {
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].temperature != 0 || rows[i].counts || rows[i].logit_bias || rows[i].banned_ids ||
        rows[i].banned_ids_more || rows[i].allowed_ids || rows[i].top_logprobs || rows[i].logprob_ids) {
      throw std::runtime_error("the naive backend samples plain greedy rows only");
    }
    const float* row = logits.row<float>(static_cast<int64_t>(i));
    if (std::any_of(row, row + logits.cols, [](float x) { return std::isnan(x); })) {
      out[i].token = -1;
      out[i].invalid = true;
      continue;
    }
    const float* best = std::max_element(row, row + logits.cols);
    double total = 0;
    for (int64_t c = 0; c < logits.cols; ++c) total += std::exp(double{row[c]} - *best);
    out[i].token = static_cast<int32_t>(best - row);
    out[i].logprob = static_cast<float>(-std::log(total));
  }
}

}  // namespace tokenmill
