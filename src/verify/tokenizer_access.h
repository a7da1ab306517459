// The tokenizer of a model or of a folder that holds only one, without an engine: for `tokenmill tokenize`.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace tokenmill {

class Tokenizer;

class TokenizerAccess {
 public:
  // A folder with tokenizer.json, a .gguf file, or a hub id. Throws Error naming the file.
  explicit TokenizerAccess(const std::string& path);

  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens) const;
  std::string decode(const std::vector<int32_t>& ids, bool skip_special_tokens) const;
  std::string_view token_bytes(int32_t id) const;  // empty for ids out of range
  int64_t vocab_size() const;

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
};

}  // namespace tokenmill
