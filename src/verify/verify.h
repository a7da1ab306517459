// `tokenmill verify`: writes what the engine computes, as JSON lines, for an independent checker to set beside golden
// files. It looks below the request API: ids straight into a ModelRunner, text straight into the tokenizer.
//
//   kind    model_path  in                            one line out for each
//   gen     model       golden file (JSONL)           prompt: prompt_ids, gen_ids, logprobs, prompt_logprobs,
//                                                     last_hidden, forced_logprobs, forced_argmax
//   tiny    -           model folder, or one of them  prompt: greedy16, last_logits, argmax_per_pos, prompt_logprobs,
//                                                     last_hidden
//   encode  tokenizer   corpus (JSON strings)         string: ids, ids_special, dec, dec_skip
//   stream  tokenizer   golden file (JSONL)           id list: pieces, flush
//   chat    -           folder with goldens.jsonl     conversation: text, or error
#pragma once

#include <ostream>
#include <string>

namespace tokenmill {

struct VerifyOptions {
  std::string kind;
  std::string model_path;  // gen, encode, stream
  std::string in;
  std::string out;        // opened and written in place
  std::string dtype;      // auto, float32, bfloat16, float16; "": auto, and float32 for tiny
  std::string device;     // gen, tiny: cpu, cuda, cuda:N; "": a CUDA build's first card, else the processor
  std::string templates;  // chat; "": the folder "templates" in `in`
};

// Returns 0, or 1 after saying on `err` what went wrong, or which models were skipped and why.
int run_verify(const VerifyOptions& options, std::ostream& err);

}  // namespace tokenmill
