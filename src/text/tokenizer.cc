#include "text/tokenizer.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "text/tokenizer_impl.h"
#include "tokenmill/error.h"

namespace tokenmill {

Tokenizer::Impl::~Impl() {
  for (const std::atomic<const Token*>& token : tokens) delete token.load();
  tm_tokenizer_free(shim);
}

void Tokenizer::Impl::ensure_sized() const {
  std::call_once(sized, [this] {
    // No model has ids from here on; a damaged file may, and one slot an id would take all memory.
    static constexpr int64_t kVocabMax = int64_t{1} << 24;
    vocab_size = std::min(tm_tokenizer_vocab_size(shim), kVocabMax);
    tokens = PageVector<std::atomic<const Token*>>(static_cast<size_t>(vocab_size));
  });
}

const Tokenizer::Impl::Token* Tokenizer::Impl::find_token(int32_t id) const {
  ensure_sized();
  if (id < 0 || id >= vocab_size) return nullptr;
  auto& slot = tokens[static_cast<size_t>(id)];
  const Token* token = slot.load(std::memory_order_acquire);
  if (token != nullptr) return token;
  const auto raw = static_cast<uint32_t>(id);
  auto made = std::make_unique<Token>();
  made->bytes = take(tm_tokenizer_token_bytes(shim, raw));
  made->is_byte = made->bytes.size() == 1 && tm_tokenizer_is_byte_token(shim, raw);
  // Whoever comes second keeps the first one's, so views stay valid.
  return slot.compare_exchange_strong(token, made.get(), std::memory_order_acq_rel) ? made.release() : token;
}

void Tokenizer::release_freed_memory() { tm_release_memory(); }

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  TmIds ids{};
  TmBytes error{};
  if (!tm_tokenizer_encode(impl_->shim, to_bytes(text), text.size(), add_special_tokens, &ids, &error)) {
    throw Error(ErrorKind::kValue, "The text cannot be tokenized: " + take(error) + ".");
  }
  std::vector<int32_t> result(ids.data, ids.data + ids.size);
  tm_ids_free(ids);
  return result;
}

std::vector<int32_t> Tokenizer::encode_prompt(std::string_view text) const {
  std::vector<int32_t> ids = encode(text, true);
  if (!impl_->bos) return ids;
  const int32_t bos = *impl_->bos;
  if (impl_->add_bos_token && (ids.empty() || ids[0] != bos)) ids.insert(ids.begin(), bos);
  if (ids.size() >= 2 && ids[0] == bos && ids[1] == bos && text.starts_with(impl_->bos_text)) ids.erase(ids.begin());
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  TmBytes text{}, error{};
  // A negative id becomes one far outside every vocabulary, and those are skipped.
  const auto* raw = reinterpret_cast<const uint32_t*>(ids.data());
  if (!tm_tokenizer_decode(impl_->shim, raw, ids.size(), skip_special, &text, &error)) {
    throw Error(ErrorKind::kRuntime, impl_->origin + ": ids cannot be decoded: " + take(error));
  }
  return take(text);
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  const Impl::Token* const token = impl_->find_token(id);
  return token == nullptr ? std::string_view() : token->bytes;
}

bool Tokenizer::is_byte_token(int32_t id) const {
  const Impl::Token* const token = impl_->find_token(id);
  return token != nullptr && token->is_byte;
}

bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && tm_tokenizer_is_special(impl_->shim, static_cast<uint32_t>(id));
}

int64_t Tokenizer::vocab_size() const {
  impl_->ensure_sized();
  return impl_->vocab_size;
}

std::optional<int32_t> Tokenizer::bos_token_id() const { return impl_->bos; }
std::optional<int32_t> Tokenizer::eos_token_id() const { return impl_->eos; }
std::vector<int32_t> Tokenizer::eos_token_ids() const { return impl_->eos_ids; }

std::optional<int32_t> Tokenizer::token_to_id(std::string_view token) const {
  const int64_t id = tm_tokenizer_token_to_id(impl_->shim, to_bytes(token), token.size());
  if (id < 0 || id > std::numeric_limits<int32_t>::max()) return std::nullopt;
  return static_cast<int32_t>(id);
}

const std::string& Tokenizer::chat_template() const { return impl_->chat_template; }
std::string Tokenizer::bos_token() const { return impl_->bos_text; }
std::string Tokenizer::eos_token() const { return impl_->eos_text; }

}  // namespace tokenmill
