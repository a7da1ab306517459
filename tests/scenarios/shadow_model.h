// A Model whose K and V are the token ids themselves: the next token is a hash of the prefix, read back through the
// block table, so a wrong block, an early free or a stale lease changes the answer. The real runner, CPU backend, KV
// layout and sampler are in the path.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine_core.h"
#include "models/model.h"
#include "text/tokenizer.h"
#include "tokenmill/engine.h"
#include "util/temp_folder.h"

namespace tokenmill::testing {

struct ShadowOptions {
  int64_t vocab_size = 512;
  int64_t context_length = 16384;
  std::vector<int32_t> eos_token_ids = {};
  Packing packing = Packing::kBFloat16;
  std::shared_ptr<const Weight> ids = nullptr;  // [vocab_size, 16] id, 0, 0 …: only where steps overlap
  // Called at the start of every forward pass, on the engine thread; may throw or sleep. May be null.
  std::function<void(const Batch&)> on_forward = nullptr;
};

std::unique_ptr<Model> make_shadow_model(ShadowOptions options);

// What greedy decoding must give, from the tokens alone.
std::vector<int32_t> shadow_greedy(std::vector<int32_t> prompt, int64_t tokens, int64_t vocab_size = 512);

// A byte-level tokenizer of 256 one-byte tokens, <eos> (256) and 200 made-up words; decode never fails.
std::shared_ptr<const Tokenizer> make_byte_tokenizer();

struct ShadowEngineOptions {
  ShadowOptions model = {};
  ServerArgs args;  // model_path is filled in
  // Each step is launched before the one before it is committed; TOKENMILL_SCENARIO_OVERLAP=1 has all scenarios do so.
  bool overlap = false;
  bool tokenizer = false;                                    // with make_byte_tokenizer(); else skip_tokenizer_init
  std::function<void(const std::string&)> on_log = nullptr;  // every log line; null: dropped
};

// Every step is followed by a check of scheduler and cache, which ends the engine where they contradict each other.
Engine make_shadow_engine(ShadowEngineOptions options);

// The same without threads: the test calls step() and deliver().
std::shared_ptr<EngineCore> make_shadow_core(ShadowEngineOptions options);

// An engine whose core a test can look into.
struct OpenEngine {
  explicit OpenEngine(ShadowEngineOptions options);
  explicit OpenEngine(std::shared_ptr<EngineCore> core);
  std::shared_ptr<EngineCore> core;
  Engine engine;
};

// `count` ids drawn from a seed.
std::vector<int32_t> random_ids(uint64_t seed, int64_t count, int64_t vocab_size = 256);

Request ids_request(std::vector<int32_t> ids, int64_t max_new_tokens);

}  // namespace tokenmill::testing
