// Requests in, sequences out: checks values against the model, applies the chat template, tokenises and fills in what
// the scheduler needs. Runs on callers' threads, any number at once; const after construction.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/request_state.h"
#include "sched/sequence_spec.h"
#include "text/tokenizer.h"
#include "tokenmill/engine.h"

namespace tokenmill {

struct PreparerOptions {
  std::shared_ptr<const Tokenizer> tokenizer;  // null: skip_tokenizer_init
  std::string chat_template;                   // "": the tokenizer's own
  std::vector<int32_t> eos_token_ids;          // sorted
  int64_t vocab_size = 0;
  int64_t context_length = 0;
  int64_t stream_interval = 1;
  uint64_t random_seed = 0;
  bool allow_auto_truncate = false;
};

class RequestPreparer {
 public:
  explicit RequestPreparer(PreparerOptions options) : options_(std::move(options)) {}

  // What needs no tokenising. Throws Error.
  void check(const Request& request) const;
  // What output and engine need to remember, from a checked request.
  std::shared_ptr<RequestState> make_state(const Request& request, uint64_t number) const;
  // Tokenises and sets state.prompt; one spec a sample, their ids 0, 1, … (the engine thread adds the first).
  // Throws Error: kValue for an over-long or empty prompt and for patterns that do not compile, kUnsupported for
  // grammars and prompt logprobs, which are not built yet.
  std::vector<SequenceSpec> prepare(const Request& request, RequestState& state) const;

  std::string apply_chat_template(const std::string& messages_json, const std::string& kwargs_json) const;

 private:
  std::vector<int32_t> tokenize(const Request& request) const;
  void check_token_ids(const SamplingParams& params) const;
  void check_logprobs(const Request& request) const;
  void fill_bans(const SamplingParams& params, SequenceSpec& spec) const;

  PreparerOptions options_;
};

// One 64-bit seed for a request without its own: the same for the same engine seed and request number.
uint64_t derive_seed(uint64_t random_seed, uint64_t number);

}  // namespace tokenmill
