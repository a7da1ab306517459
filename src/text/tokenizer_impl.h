// What a Tokenizer is made of. Private to src/text.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/page_memory.h"
#include "text/shim_call.h"
#include "text/tokenizer.h"

namespace tokenmill {

struct Tokenizer::Impl {
  Impl() = default;
  ~Impl();
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  std::string origin;  // the file, for messages
  TmTokenizer* shim = nullptr;
  std::optional<int32_t> bos, eos;
  std::vector<int32_t> eos_ids;
  std::string bos_text, eos_text, chat_template;
  // tokenizer_config.json says add_bos_token, which a post-processor may leave to it (encode_prompt).
  bool add_bos_token = false;

  struct Token {
    std::string bytes;
    bool is_byte = false;
  };
  // Made when first asked for: start-up needs none of them. Entries are set once and then constant.
  mutable std::once_flag sized;
  mutable int64_t vocab_size = 0;
  mutable PageVector<std::atomic<const Token*>> tokens;
  void ensure_sized() const;
  const Token* find_token(int32_t id) const;  // null for ids out of range
};

}  // namespace tokenmill
