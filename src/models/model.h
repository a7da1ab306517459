// A forward pass: ids and KV in, hidden states and logits out. Const after load; one file a distinct forward pass.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "nn/forward_context.h"
#include "ops/backend.h"

namespace tokenmill {

class Model {
 public:
  virtual ~Model() = default;
  virtual const ModelConfig& config() const = 0;
  virtual Packing packing() const = 0;
  virtual size_t weight_bytes() const = 0;
  // Workspace that forward() takes for a step of this many tokens, beside `hidden`.
  virtual size_t workspace_bytes(int64_t tokens) const {
    (void)tokens;
    return 0;
  }
  // Runs context.num_layers layers: hidden [T, hidden_size] fp32, before the final norm.
  virtual void forward(ForwardContext& context, Matrix hidden) const = 0;
  // Final norm of each row, in place of or beside the input: out may be hidden.
  virtual void final_norm(ForwardContext& context, Matrix hidden, Matrix out) const = 0;
  // hidden [R, hidden_size] after final_norm -> logits [R, vocab_size] fp32, softcapped where the model is.
  virtual void logits(ForwardContext& context, Matrix hidden, Matrix out) const = 0;
};

// Loads the weights of checkpoint.config().architecture. progress(done_files, total_files), where not null, is called
// after each tensor, and what it throws ends the loading. Throws Error(kUnsupported) with the list of known
// architectures.
std::unique_ptr<Model> load_model(const Checkpoint& checkpoint, Backend& backend, Packing packing,
                                  const std::function<void(int64_t, int64_t)>& progress);

}  // namespace tokenmill
