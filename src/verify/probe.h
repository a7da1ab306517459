// Feeds token ids straight to a ModelRunner and looks at logits and hidden states: no scheduler, no cache, no requests.
//
// Sequence s owns the blocks [s * blocks_per_sequence, (s + 1) * blocks_per_sequence).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "runner/model_runner.h"

namespace tokenmill {

// The best id; of equals, the lowest.
int32_t argmax(std::span<const float> logits);
// log softmax(logits)[id]
float logprob_of(std::span<const float> logits, int32_t id);

struct ProbeOptions {
  int64_t num_sequences = 1;
  int64_t tokens_max = 0;      // a sequence
  int64_t chunk_tokens = 256;  // longest prefill chunk
  int32_t page_size = 32;
};

class Probe {
 public:
  Probe(std::unique_ptr<Backend> backend, std::unique_ptr<Model> model, const ProbeOptions& options);

  // Called with ids' index and the logits after it.
  using OnLogits = std::function<void(size_t index, std::span<const float> logits)>;

  // Appends ids to a sequence, chunk by chunk. Returns the final-normed hidden state of the last one.
  std::vector<float> feed(int64_t sequence, std::span<const int32_t> ids, const OnLogits& on_logits);

  struct Next {
    int64_t sequence;
    int32_t token;
  };
  // Appends one token to each of several sequences in one step; on_logits gets the index into `next`.
  void decode(std::span<const Next> next, const OnLogits& on_logits);

  struct Piece {
    int64_t sequence;
    std::span<const int32_t> ids;
  };
  // One step: appends pieces to several sequences at once. on_logits gets the index into all pieces' ids, joined.
  void step(std::span<const Piece> pieces, const OnLogits& on_logits);

  // Makes `target` begin with the first `length` tokens of `source`: the next step copies their rows.
  void copy_prefix(int64_t source, int64_t target, int64_t length);
  // Forgets all of a sequence but its first `length` tokens.
  void truncate(int64_t sequence, int64_t length);
  int64_t length(int64_t sequence) const { return lengths_.at(static_cast<size_t>(sequence)); }

  ModelRunner& runner() { return *runner_; }

 private:
  void add_row(const Piece& piece);
  // Runs a step; on_logits gets offset + the token's index in it.
  ModelRunner::InFlight run(std::span<const Piece> pieces, size_t offset, const OnLogits& on_logits);

  ProbeOptions options_;
  int32_t blocks_per_sequence_;
  std::unique_ptr<ModelRunner> runner_;
  std::vector<int64_t> lengths_;
  Batch batch_;
  std::vector<BlockCopy> copies_;  // of the next step
};

}  // namespace tokenmill
