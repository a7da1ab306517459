#include "verify/tokenizer_access.h"

#include <filesystem>

#include "checkpoint/checkpoint.h"
#include "text/tokenizer.h"
#include "tokenmill/error.h"

namespace tokenmill {
namespace {

std::shared_ptr<const Tokenizer> open_tokenizer(const std::string& path) {
  if (path.ends_with(".gguf")) return Tokenizer::from_gguf(path);
  if (std::filesystem::is_directory(path) && std::filesystem::exists(path + "/tokenizer.json")) {
    return Tokenizer::from_folder(path);
  }
  const TokenizerSource source = Checkpoint::open(path, {})->tokenizer_source();
  if (!source.gguf_path.empty()) return Tokenizer::from_gguf(source.gguf_path);
  if (!source.folder.empty()) return Tokenizer::from_folder(source.folder);
  throw Error(ErrorKind::kValue, path + ": no tokenizer.json in this folder; a model without one takes token ids only");
}

}  // namespace

TokenizerAccess::TokenizerAccess(const std::string& path) : tokenizer_(open_tokenizer(path)) {}

std::vector<int32_t> TokenizerAccess::encode(std::string_view text, bool add_special_tokens) const {
  return tokenizer_->encode(text, add_special_tokens);
}

std::string TokenizerAccess::decode(const std::vector<int32_t>& ids, bool skip_special_tokens) const {
  return tokenizer_->decode(ids, skip_special_tokens);
}

std::string_view TokenizerAccess::token_bytes(int32_t id) const { return tokenizer_->token_bytes(id); }

int64_t TokenizerAccess::vocab_size() const { return tokenizer_->vocab_size(); }

}  // namespace tokenmill
