// Batch -> forward -> sample -> StepResult. Owns the model, the backend, the KV pool and the workspace.
//
// forward() launches a step, sample() its sampling (masks may be ready only then), wait() takes the result. On the CPU
// all three are synchronous. The next step may be launched between one's sample() and wait():
//
//   forward(1) sample(1) ─► forward(2) wait(1) sample(2) ─► forward(3) wait(2) sample(3) …
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "batch/batch.h"
#include "models/model.h"
#include "ops/backend.h"

namespace tokenmill {

struct RunnerOptions {
  int32_t page_size = 32;
  int32_t num_blocks = 0;
  // Blocks of the layers with a window, which then have tables of their own in the batch; 0: they are held as all
  // others are.
  int32_t window_blocks = 0;
  int64_t max_tokens_per_step = 0;  // sizes the workspace: chunk + riding decodes
  int64_t max_rows = 0;             // max_running_requests
  // Where the backend has graphs, steps of up to this many rows of one token each are padded to a few sizes, and run
  // as recorded graphs unless use_graphs is off: what they compute is the same.
  int64_t graph_rows_max = 0;
  bool use_graphs = true;
};

class ModelRunner {
 public:
  struct InFlight {
    uint64_t step = 0;
    const Batch* batch = nullptr;          // until sample()
    std::vector<SampledToken> sampled;     // [rows of sample()]; where the backend overlaps it is filled by wait()
    std::vector<std::string> edit_errors;  // as sampled: what a row's logit_edit threw; empty without any edit
  };

  // Reserves all memory. Throws Error(kRuntime) "Not enough memory. …".
  ModelRunner(std::unique_ptr<Backend> backend, std::unique_ptr<Model> model, const RunnerOptions& options);
  ~ModelRunner();

  // Runs the largest steps there can be over blocks that nobody has yet, through the first layers of each kind, so that
  // a device has loaded its code and taken what memory it works in: too little of it shows at start. Throws
  // Error(kRuntime) "Not enough memory. …".
  void warm_up();
  // Records the graphs of steps of up to this many rows now, so that the first requests need not wait for it.
  void prepare_graphs(int64_t rows_max);
  // Rows of the largest step that may run as a graph; 0: none does.
  int64_t graph_rows_max() const;

  // Tokens of batch.slot_tokens are those of the last sample().
  InFlight forward(const Batch& batch);
  void sample(InFlight& step, std::span<const SamplingRow> rows);
  StepResult wait(InFlight&& step);

  // For verify and tests: after forward(), the final-normed hidden states and the logits of chosen tokens of the step
  // (index into Batch::tokens), as host floats [indices.size(), hidden_size] and [.., vocab_size].
  std::vector<float> hidden_states(const InFlight& step, std::span<const int32_t> token_indices);
  std::vector<float> logits(const InFlight& step, std::span<const int32_t> token_indices);

  const Model& model() const;
  Backend& backend();
  int64_t kv_bytes_per_token() const;
  // Bytes of one block over all layers, in the backend's layout, to host memory and back; between two steps only.
  int64_t block_bytes() const;
  void read_block(int32_t block, std::byte* to);
  void write_block(int32_t block, const std::byte* from);
  // The shape that these bytes have.
  const KvPoolShape& kv_shape() const;
  // The whole KV pool, for tests that fill free blocks with NaN.
  std::span<std::byte> kv_memory();
  // Bytes of KV one block takes over all layers of a group, for sizing the pool before a runner exists. Without a
  // window group all layers are in the full one.
  static int64_t kv_bytes_per_block(const Model& model, const Backend& backend, int32_t page_size,
                                    bool with_window_group, KvGroup group);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tokenmill
