// Prefixes in files, so that the next process need not compute a long system prompt again.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "engine/engine_core.h"
#include "engine/prefix_file.h"

namespace tokenmill {
namespace {

// Tokens that are computed again at loading, in whole blocks, to see that this engine computes the file's bits.
constexpr int64_t kCheckedTokens = 64;

// A namespace of its own for each check: what it leaves in the cache is of no use to anyone.
std::string check_salt(uint64_t number) { return "\x01load_prefix-" + std::to_string(number); }

// "avx512 (vnni, bf16), 2 threads": the bits depend on the path, not on the number of threads.
std::string without_threads(std::string description) {
  const size_t comma = description.rfind(", ");
  if (comma != std::string::npos && description.find("thread", comma) != std::string::npos) description.resize(comma);
  return description;
}

void require_prefixes(const ServerArgs& args, bool has_window, bool on_output_thread, const char* what) {
  if (has_window) {
    throw Error(ErrorKind::kUnsupported, std::string(what) +
                                             "() is not supported for models with sliding-window layers: these hold "
                                             "the end of a prefix only, in a pool of their own.");
  }
  if (args.disable_radix_cache) {
    throw Error(ErrorKind::kValue,
                std::string(what) + "() needs the radix cache, and the engine has disable_radix_cache=True.");
  }
  if (on_output_thread) throw Error(ErrorKind::kRuntime, std::string(what) + "() cannot wait inside on_output.");
}

}  // namespace

PrefixKey EngineCore::prefix_key() {
  const std::lock_guard lock(fingerprint_mutex_);
  if (fingerprint_.empty()) fingerprint_ = model_files_.fingerprint();
  const KvPoolShape& shape = kv_shape_;
  return {{"tokenmill version", version()},
          {"model", fingerprint_},
          {"dtype", args_.dtype},
          {"code path", without_threads(backend_description_)},
          {"page_size", *args_.page_size},
          {"layers", shape.num_layers},
          {"KV heads", shape.kv_heads},
          {"head size", shape.head_dim},
          {"KV dtype", shape.dtype == DType::kF32   ? "float32"
                       : shape.dtype == DType::kF16 ? "float16"
                                                    : "bfloat16"},
          {"bytes a block", kv_block_bytes_}};
}

std::vector<std::byte> EngineCore::read_pinned(uint64_t pin, std::vector<int32_t>& tokens) {
  std::vector<std::byte> kv;
  ask([&] {
    Scheduler::HeldPrefix held = scheduler_->held_by(pin);
    const auto bytes = static_cast<size_t>(kv_block_bytes_);
    kv.resize(held.blocks.size() * bytes);
    for (size_t i = 0; i < held.blocks.size(); ++i) runner_->read_block(held.blocks[i], kv.data() + i * bytes);
    tokens = std::move(held.tokens);
    return true;
  });
  return kv;
}

int64_t EngineCore::save_prefix(Request request, const std::string& path) {
  require_prefixes(args_, has_window_pool(), outputs_.on_this_thread(), "save_prefix");
  const auto [held, prompt_tokens] = pin(std::move(request), /*brief=*/true);
  PrefixFile file;
  std::vector<std::byte> kv;
  try {
    kv = read_pinned(held, file.tokens);
    file.key = prefix_key();
  } catch (...) {
    unpin(held);
    throw;
  }
  unpin(held);
  if (file.tokens.empty()) {
    throw Error(ErrorKind::kValue, fmt::format("Only whole blocks are saved, and the prompt has {} tokens, fewer than "
                                               "page_size={}. Give a longer prompt or a smaller page_size.",
                                               prompt_tokens, *args_.page_size));
  }
  file.kv = kv;
  write_prefix_file(path, file);
  return static_cast<int64_t>(file.tokens.size());
}

// Computes the first blocks anew and compares. Left out where no bits are promised.
void EngineCore::check_prefix_bits(const std::string& path, std::span<const int32_t> tokens,
                                   std::span<const std::byte> kv) {
  if (!args_.enable_deterministic_inference.value_or(false) && *args_.device != "cpu") return;
  const int64_t page = *args_.page_size;
  const int64_t wanted = (kCheckedTokens + page - 1) / page * page;
  const auto count = static_cast<size_t>(std::min<int64_t>(wanted, static_cast<int64_t>(tokens.size())));
  Request request;
  request.input_ids = std::vector<int32_t>(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(count));
  request.cache_salt = check_salt(next_pin_);
  const auto [held, prompt_tokens] = pin(std::move(request), /*brief=*/true);
  std::vector<int32_t> computed_tokens;
  std::vector<std::byte> computed;
  try {
    computed = read_pinned(held, computed_tokens);
  } catch (...) {
    unpin(held);
    throw;
  }
  unpin(held);
  if (computed.size() <= kv.size() && std::memcmp(computed.data(), kv.data(), computed.size()) == 0) return;
  throw Error(ErrorKind::kValue,
              fmt::format("The saved prefix {} holds other bits than this engine computes for its first {} tokens: it "
                          "comes from other weights or another machine. Save it again with this engine.",
                          path, count));
}

int64_t EngineCore::load_prefix(const std::string& path, const std::optional<std::string>& cache_salt) {
  require_prefixes(args_, has_window_pool(), outputs_.on_this_thread(), "load_prefix");
  check_open();
  const PrefixFile file = read_prefix_file(path);
  require_same_key(path, file.key, prefix_key());
  const int64_t block_bytes = kv_block_bytes_;
  const auto page = static_cast<size_t>(*args_.page_size);
  const bool sound = !file.tokens.empty() && file.tokens.size() % page == 0 &&
                     file.kv.size() == file.tokens.size() / page * static_cast<size_t>(block_bytes) &&
                     std::all_of(file.tokens.begin(), file.tokens.end(),
                                 [&](int32_t id) { return id >= 0 && id < model_config_.vocab_size; });
  if (!sound) throw Error(ErrorKind::kValue, "The saved prefix " + path + " is damaged. Save it again.");
  const bool fits = static_cast<int64_t>(file.tokens.size()) <= max_total_num_tokens_;
  if (fits) check_prefix_bits(path, file.tokens, file.kv);
  const bool inserted =
      fits && ask([&] {
        return scheduler_->insert_prefix(cache_salt.value_or(""), file.tokens, [&](int64_t index, int32_t block) {
          runner_->write_block(block, file.kv.data() + index * block_bytes);
        });
      });
  if (!inserted) {
    throw Error(
        ErrorKind::kRuntime,
        fmt::format("The saved prefix {} has {} tokens, and the KV pool of {} tokens cannot take them now. Wait "
                    "for running requests, release pins, or use a larger max_total_tokens.",
                    path, file.tokens.size(), max_total_num_tokens_));
  }
  return static_cast<int64_t>(file.tokens.size());
}

}  // namespace tokenmill
