#include "runner/model_runner.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/check.h"
#include "models/packing.h"
#include "nn/forward_context.h"
#include "nn/kv_pool.h"
#include "nn/workspace.h"

namespace tokenmill {

namespace {

// Logits of more rows than this many bytes hold are made in several products: 64 rows of a vocabulary of 262,144.
constexpr int64_t kLogitsBytesMax = int64_t{64} << 20;

// Of the sequences of the steps that warm a device up: what matters is the number of tokens.
constexpr int64_t kWarmUpLength = 1024, kWarmUpKeys = int64_t{1} << 17;

KvPoolShape pool_shape(const Model& model, int32_t page_size, bool with_window_group) {
  const ModelConfig& config = model.config();
  KvPoolShape shape = {.num_layers = static_cast<int32_t>(config.num_layers),
                       .kv_heads = static_cast<int32_t>(config.num_kv_heads),
                       .head_dim = static_cast<int32_t>(config.head_dim),
                       .page_size = page_size,
                       .num_blocks = 0,
                       .dtype = kv_dtype(model.packing()),
                       .window_blocks = 0,
                       .layer_window = {}};
  if (!with_window_group) return shape;
  for (const int32_t window : config.layer_window) shape.layer_window.push_back(window > 0);
  return shape;
}

// Rows that only fill a recorded step up write to a block of their own, in either group the last.
KvPoolShape pool_shape(const Model& model, const RunnerOptions& options, bool with_dummy) {
  KvPoolShape shape = pool_shape(model, options.page_size, options.window_blocks > 0);
  shape.num_blocks = options.num_blocks + (with_dummy ? 1 : 0);
  if (options.window_blocks > 0) shape.window_blocks = options.window_blocks + (with_dummy ? 1 : 0);
  return shape;
}

int64_t logits_rows(const Model& model, int64_t max_rows) {
  const int64_t row_bytes = model.config().vocab_size * static_cast<int64_t>(sizeof(float));
  return std::clamp<int64_t>(kLogitsBytesMax / row_bytes, 1, std::max<int64_t>(max_rows, 1));
}

// Rows of the largest recorded step. A rotation that depends on the sequence's length by host arithmetic cannot be
// recorded.
int64_t graph_rows(const Backend& backend, const Model& model, const RunnerOptions& options) {
  const ModelConfig& config = model.config();
  const bool dynamic =
      config.rope.scaling == RopeScaling::kDynamic || config.rope_local.scaling == RopeScaling::kDynamic;
  if (!backend.has_graphs() || dynamic) return 0;
  return std::min({options.graph_rows_max, options.max_rows, options.max_tokens_per_step});
}

// Sizes steps are padded to: 1, 2, 4, 8, 16, 24 … 256, 288 … and the largest itself.
int64_t bucket_of(int64_t rows, int64_t rows_max) {
  int64_t bucket = 1;
  while (bucket < rows) bucket += bucket < 8 ? bucket : bucket < 256 ? 8 : 32;
  return std::min(bucket, rows_max);
}

// The first layers, as few as have one of each kind there is.
size_t layers_of_each_kind(const std::vector<int32_t>& windows) {
  size_t last_new = 0;
  for (size_t i = 1; i < windows.size(); ++i) {
    const auto here = windows.begin() + static_cast<std::ptrdiff_t>(i);
    if (std::find(windows.begin(), here, *here) == here) last_new = i;
  }
  return last_new + 1;
}

// [ hidden | what forward() takes ] and [ hidden | gathered rows | logits ] share one allocation.
size_t workspace_bytes(const Model& model, const RunnerOptions& options) {
  const ModelConfig& config = model.config();
  Workspace measure;
  measure.take(options.max_tokens_per_step, config.hidden_size);
  const size_t after_hidden = measure.mark();
  const int64_t rows = logits_rows(model, options.max_rows);
  measure.take(rows, config.hidden_size);
  measure.take(rows, config.vocab_size);
  return std::max(measure.bytes_peak(), after_hidden + model.workspace_bytes(options.max_tokens_per_step));
}

}  // namespace

struct ModelRunner::Impl {
  Impl(std::unique_ptr<Backend> backend_in, std::unique_ptr<Model> model_in, const RunnerOptions& options)
      : backend(std::move(backend_in)),
        model(std::move(model_in)),
        graph_rows_max(graph_rows(*backend, *model, options)),
        use_graphs(options.use_graphs),
        dummy_block(options.num_blocks),
        window_dummy_block(options.window_blocks),
        kv(*backend, pool_shape(*model, options, graph_rows_max > 0)),
        workspace(*backend, workspace_bytes(*model, options)),
        max_tokens(options.max_tokens_per_step),
        max_rows(options.max_rows),
        chunk_rows(logits_rows(*model, options.max_rows)) {}

  ForwardContext context(const Batch& batch) { return {*backend, kv, workspace, batch, num_layers}; }

  // Whether a step is one that graphs are for.
  bool has_graph(const Batch& batch) const {
    return static_cast<int64_t>(batch.rows.size()) <= graph_rows_max && batch.tokens.size() == batch.rows.size() &&
           num_layers >= static_cast<size_t>(model->config().num_layers);
  }
  Batch step_over_block_0(int64_t tokens, int64_t q_len, int64_t kv_len) const;
  // Runs the rows of `batch`, padded to the bucket, as a graph: hidden states and, where they fit, logits.
  void forward_graph(const Batch& batch, int64_t bucket);

  // Calls visit(first, normed hidden [n, H]) for the tokens in chunks whose logits fit the workspace. The matrices
  // visit() takes from the workspace are given back after each chunk.
  template <class Visit>
  void for_each_chunk(ForwardContext& context, std::span<const int32_t> token_indices, Visit&& visit);

  // Lets rows' logit_edits work. An error's text where one threw, whose row stays as it was; empty without any edit.
  std::vector<std::string> edit_logits(Matrix logits, std::span<const SamplingRow> rows);

  // The edits, then the backend's sampling: rows [first, first + rows.size()) of the step.
  void sample_rows(Matrix logits, std::span<const SamplingRow> rows, size_t first, InFlight& step);

  std::vector<float> edited;  // one row of logits on the host

  // Order matters: the memory of all the others is the backend's.
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Model> model;
  int64_t graph_rows_max;
  bool use_graphs;
  int32_t dummy_block, window_dummy_block;
  KvPool kv;
  Workspace workspace;
  int64_t max_tokens, max_rows, chunk_rows;
  size_t num_layers = std::numeric_limits<size_t>::max();  // that a step runs; fewer in warm_up()
  Matrix hidden;                                           // of the step launched last
  Matrix graph_logits;  // of its rows, where its graph made them and nothing has overwritten them
  Batch padded;         // what the graph's step runs on
  std::vector<int32_t> token_indices;
};

template <class Visit>
void ModelRunner::Impl::for_each_chunk(ForwardContext& context, std::span<const int32_t> indices, Visit&& visit) {
  for (const int32_t index : indices) TM_CHECK(index >= 0 && index < hidden.rows);
  graph_logits = {};
  const size_t mark = workspace.mark();
  for (size_t first = 0; first < indices.size(); first += static_cast<size_t>(chunk_rows)) {
    const size_t count = std::min(indices.size() - first, static_cast<size_t>(chunk_rows));
    const Matrix rows = workspace.take(static_cast<int64_t>(count), hidden.cols);
    backend->gather_rows(hidden, indices.subspan(first, count), rows);
    model->final_norm(context, rows, rows);
    visit(first, rows);
    workspace.rewind(mark);
  }
}

void ModelRunner::Impl::forward_graph(const Batch& batch, int64_t bucket) {
  const int64_t rows = static_cast<int64_t>(batch.rows.size());
  padded.step = batch.step;
  padded.tokens = batch.tokens;
  padded.positions = batch.positions;
  padded.rows = batch.rows;
  padded.block_tables = batch.block_tables;
  padded.window_tables = batch.window_tables;
  padded.slot_tokens = batch.slot_tokens;
  for (int64_t row = rows; row < bucket; ++row) {
    padded.rows.push_back({.sequence_id = 0,
                           .q_len = 1,
                           .kv_len = 1,
                           .token_begin = static_cast<int32_t>(row),
                           .block_begin = static_cast<int32_t>(padded.block_tables.size()),
                           .num_blocks = 1});
    padded.block_tables.push_back(dummy_block);
    if (window_dummy_block > 0) padded.window_tables.push_back(window_dummy_block);
    padded.tokens.push_back(0);
    padded.positions.push_back(0);
  }
  backend->plan(padded, kv.shape().page_size);
  // The matrices are the same for every step of this bucket.
  workspace.reset();
  const ModelConfig& config = model->config();
  const Matrix all = workspace.take(bucket, config.hidden_size);
  const size_t mark = workspace.mark();
  const bool with_logits = bucket <= chunk_rows;
  Matrix normed, logits;
  if (with_logits) {
    normed = workspace.take(bucket, config.hidden_size);
    logits = workspace.take(bucket, config.vocab_size);
    workspace.rewind(mark);
  }
  const auto work = [&] {
    ForwardContext context = this->context(padded);
    model->forward(context, all);
    workspace.rewind(mark);
    if (!with_logits) return;
    model->final_norm(context, all, normed);
    model->logits(context, normed, logits);
  };
  if (use_graphs) {
    backend->run_graph(static_cast<uint64_t>(bucket), work);
  } else {
    work();
  }
  hidden = all.slice_rows(0, rows);
  if (with_logits) graph_logits = logits.slice_rows(0, rows);
}

ModelRunner::ModelRunner(std::unique_ptr<Backend> backend, std::unique_ptr<Model> model, const RunnerOptions& options)
    : impl_(std::make_unique<Impl>(std::move(backend), std::move(model), options)) {}

ModelRunner::~ModelRunner() = default;

// `tokens` tokens in rows of q_len (the last has what is left) and kv_len, whose blocks are all block 0, and as many
// draws as logits are made at a time.
Batch ModelRunner::Impl::step_over_block_0(int64_t tokens, int64_t q_len, int64_t kv_len) const {
  Batch batch;
  batch.step = 1;
  const auto blocks = static_cast<int32_t>((kv_len + kv.shape().page_size - 1) / kv.shape().page_size);
  for (int64_t begin = 0; begin < tokens; begin += q_len) {
    const auto length = static_cast<int32_t>(std::min(q_len, tokens - begin));
    batch.rows.push_back({.sequence_id = 0,
                          .q_len = length,
                          .kv_len = static_cast<int32_t>(kv_len),
                          .token_begin = static_cast<int32_t>(begin),
                          .block_begin = static_cast<int32_t>(batch.block_tables.size()),
                          .num_blocks = blocks});
    batch.block_tables.resize(batch.block_tables.size() + static_cast<size_t>(blocks), 0);
    for (int64_t i = 0; i < length; ++i) batch.positions.push_back(static_cast<int32_t>(kv_len - length + i));
  }
  batch.tokens.resize(static_cast<size_t>(tokens), 0);
  if (kv.shape().window_blocks > 0) batch.window_tables = batch.block_tables;
  for (int64_t i = 0; i < std::min({chunk_rows, tokens, max_rows}); ++i) {
    SamplingRow row;
    row.token_index = static_cast<int32_t>(i);
    row.top_p = 0.9f;
    row.want_logprob = true;
    batch.sampling.push_back(row);
  }
  return batch;
}

void ModelRunner::warm_up() {
  Impl& impl = *impl_;
  // Layers of a kind use the same memory and the same code.
  impl.num_layers = layers_of_each_kind(impl.model->config().layer_window);
  const int64_t length = std::min(kWarmUpLength, impl.model->config().max_position);
  // The most tokens, and the most rows of one token: attention's memory is another in each. Few rows are cut into many
  // parts where they are long, many rows are not.
  const int64_t rows = std::min(impl.max_rows, impl.max_tokens);
  const int64_t keys = std::min(length, std::clamp<int64_t>(kWarmUpKeys / rows, 64, kWarmUpLength));
  for (const Batch& batch :
       {impl.step_over_block_0(impl.max_tokens, length, length), impl.step_over_block_0(rows, 1, keys)}) {
    InFlight step = forward(batch);
    sample(step, batch.sampling);
    wait(std::move(step));
  }
  impl.num_layers = std::numeric_limits<size_t>::max();
}

void ModelRunner::prepare_graphs(int64_t rows_max) {
  Impl& impl = *impl_;
  const Batch nothing;
  // From the largest down, and once more than a size's run and record: the backend's buffers grow in the first runs,
  // which spoils the records of sizes before.
  for (int run = 0; run < 3 && impl.use_graphs; ++run) {
    for (int64_t rows = std::min(rows_max, impl.graph_rows_max); rows >= 1; --rows) {
      if (bucket_of(rows, impl.graph_rows_max) == rows) impl.forward_graph(nothing, rows);
    }
  }
}

int64_t ModelRunner::graph_rows_max() const { return impl_->graph_rows_max; }

ModelRunner::InFlight ModelRunner::forward(const Batch& batch) {
  Impl& impl = *impl_;
  const int64_t tokens = static_cast<int64_t>(batch.tokens.size());
  TM_CHECK(tokens > 0 && tokens <= impl.max_tokens && batch.positions.size() == batch.tokens.size());
  TM_CHECK(batch.slot_tokens.empty() || impl.backend->overlaps());
  impl.kv.copy_blocks(KvGroup::kFull, batch.copies);
  impl.kv.copy_blocks(KvGroup::kWindow, batch.window_copies);
  impl.graph_logits = {};
  const InFlight step{.step = batch.step, .batch = &batch, .sampled = {}, .edit_errors = {}};
  if (impl.has_graph(batch)) {
    impl.forward_graph(batch, bucket_of(tokens, impl.graph_rows_max));
    return step;
  }
  impl.backend->plan(batch, impl.kv.shape().page_size);
  impl.workspace.reset();
  impl.hidden = impl.workspace.take(tokens, impl.model->config().hidden_size);
  const size_t mark = impl.workspace.mark();
  ForwardContext context = impl.context(batch);
  impl.model->forward(context, impl.hidden);
  impl.workspace.rewind(mark);
  return step;
}

std::vector<std::string> ModelRunner::Impl::edit_logits(Matrix logits, std::span<const SamplingRow> rows) {
  const auto has_edit = [](const SamplingRow& row) { return row.logit_edit != nullptr; };
  if (std::none_of(rows.begin(), rows.end(), has_edit)) return {};
  std::vector<std::string> errors(rows.size());
  const size_t width = static_cast<size_t>(logits.cols);
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].logit_edit == nullptr) continue;
    float* const row = logits.row<float>(static_cast<int64_t>(i));
    edited.resize(width);
    backend->copy_to_host(edited.data(), row, width * sizeof(float));
    try {
      (*rows[i].logit_edit)(rows[i].output_ids, edited);
    } catch (const std::exception& error) {
      errors[i] = std::string("custom_logit_processor failed: ") + error.what();
    } catch (...) {
      errors[i] = "custom_logit_processor failed.";
    }
    if (errors[i].empty()) backend->copy_from_host(row, edited.data(), width * sizeof(float));
  }
  return errors;
}

void ModelRunner::Impl::sample_rows(Matrix logits, std::span<const SamplingRow> rows, size_t first, InFlight& step) {
  std::vector<std::string> errors = edit_logits(logits, rows);
  if (!errors.empty()) {
    step.edit_errors.resize(step.sampled.size());
    std::move(errors.begin(), errors.end(), step.edit_errors.begin() + static_cast<std::ptrdiff_t>(first));
  }
  if (backend->overlaps()) {
    backend->launch_sample(logits, rows, static_cast<int32_t>(first), static_cast<int32_t>(step.sampled.size()));
    return;
  }
  backend->sample(logits, rows, std::span(step.sampled).subspan(first, rows.size()));
}

void ModelRunner::sample(InFlight& step, std::span<const SamplingRow> rows) {
  Impl& impl = *impl_;
  step.sampled.assign(rows.size(), SampledToken{});
  if (impl.graph_logits.rows == static_cast<int64_t>(rows.size()) && !rows.empty()) {
    bool in_order = true;
    for (size_t i = 0; i < rows.size(); ++i) in_order = in_order && rows[i].token_index == static_cast<int32_t>(i);
    if (in_order) return impl.sample_rows(std::exchange(impl.graph_logits, {}), rows, 0, step);
  }
  impl.token_indices.clear();
  for (const SamplingRow& row : rows) impl.token_indices.push_back(row.token_index);
  ForwardContext context = impl.context(*step.batch);
  impl.for_each_chunk(context, impl.token_indices, [&](size_t first, Matrix hidden) {
    const Matrix logits = impl.workspace.take(hidden.rows, impl.model->config().vocab_size);
    impl.model->logits(context, hidden, logits);
    impl.sample_rows(logits, rows.subspan(first, static_cast<size_t>(hidden.rows)), first, step);
  });
}

StepResult ModelRunner::wait(InFlight&& step) {
  if (impl_->backend->overlaps()) impl_->backend->collect_samples(step.sampled);
  for (size_t i = 0; i < step.edit_errors.size(); ++i) {
    if (step.edit_errors[i].empty()) continue;
    step.sampled[i] = {};
    step.sampled[i].invalid = true;
    step.sampled[i].error = std::move(step.edit_errors[i]);
  }
  return {.step = step.step, .sampled = std::move(step.sampled)};
}

std::vector<float> ModelRunner::hidden_states(const InFlight& step, std::span<const int32_t> token_indices) {
  Impl& impl = *impl_;
  const size_t width = static_cast<size_t>(impl.hidden.cols);
  std::vector<float> out(token_indices.size() * width);
  ForwardContext context = impl.context(*step.batch);
  impl.for_each_chunk(context, token_indices, [&](size_t first, Matrix hidden) {
    impl.backend->copy_to_host(&out[first * width], hidden.data,
                               static_cast<size_t>(hidden.rows) * width * sizeof(float));
  });
  return out;
}

std::vector<float> ModelRunner::logits(const InFlight& step, std::span<const int32_t> token_indices) {
  Impl& impl = *impl_;
  const size_t vocab = static_cast<size_t>(impl.model->config().vocab_size);
  std::vector<float> out(token_indices.size() * vocab);
  ForwardContext context = impl.context(*step.batch);
  impl.for_each_chunk(context, token_indices, [&](size_t first, Matrix hidden) {
    const Matrix logits = impl.workspace.take(hidden.rows, static_cast<int64_t>(vocab));
    impl.model->logits(context, hidden, logits);
    impl.backend->copy_to_host(&out[first * vocab], logits.data,
                               static_cast<size_t>(hidden.rows) * vocab * sizeof(float));
  });
  return out;
}

const Model& ModelRunner::model() const { return *impl_->model; }
Backend& ModelRunner::backend() { return *impl_->backend; }
int64_t ModelRunner::kv_bytes_per_token() const { return impl_->kv.bytes_per_token(); }
int64_t ModelRunner::block_bytes() const {
  return KvPool::bytes_per_block(*impl_->backend, impl_->kv.shape(), KvGroup::kFull);
}
void ModelRunner::read_block(int32_t block, std::byte* to) { impl_->kv.read_block(block, to); }
void ModelRunner::write_block(int32_t block, const std::byte* from) { impl_->kv.write_block(block, from); }
const KvPoolShape& ModelRunner::kv_shape() const { return impl_->kv.shape(); }
std::span<std::byte> ModelRunner::kv_memory() { return impl_->kv.memory(); }

int64_t ModelRunner::kv_bytes_per_block(const Model& model, const Backend& backend, int32_t page_size,
                                        bool with_window_group, KvGroup group) {
  return KvPool::bytes_per_block(backend, pool_shape(model, page_size, with_window_group), group);
}

}  // namespace tokenmill
