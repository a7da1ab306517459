#include "text/text_stream.h"

#include <algorithm>
#include <limits>
#include <string_view>
#include <utility>

namespace tokenmill {
namespace {

// Context ids of the prompt. More than the bytes of one character, so that a character begun in it can be finished.
constexpr size_t kTailIds = 6;
// Ids that end in U+FFFD wait for the rest of their character; no character needs nearly as many, so a longer run is
// garbage that is shown as such. This bounds the work per id.
constexpr size_t kPendingIdsMax = 64;
constexpr std::string_view kReplacement = "\xef\xbf\xbd";

bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xc0) == 0x80; }

// Bytes of the first `count` characters of `text`.
size_t characters_end(std::string_view text, size_t count) {
  size_t at = 0;
  while (at < text.size() && count > 0) {
    do ++at;
    while (at < text.size() && is_continuation(text[at]));
    --count;
  }
  return at;
}

size_t count_characters(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return !is_continuation(c); }));
}

// What `whole` adds to `before`, of which it is a continuation except where a character was completed or a run of byte
// tokens changed its meaning; then characters are counted.
std::string_view added(std::string_view before, std::string_view whole) {
  if (whole.starts_with(before)) return whole.substr(before.size());
  std::string_view clean = before;
  while (clean.ends_with(kReplacement)) clean.remove_suffix(kReplacement.size());
  if (clean.size() != before.size() && whole.starts_with(clean)) return whole.substr(clean.size());
  return whole.substr(characters_end(whole, count_characters(before)));
}

}  // namespace

TextStream::TextStream(std::shared_ptr<const Tokenizer> tokenizer, std::span<const int32_t> prompt,
                       TextStreamOptions options)
    : tokenizer_(std::move(tokenizer)), options_(options) {
  for (size_t i = prompt.size(); i > 0 && ids_.size() < kTailIds; --i) {
    const int32_t id = prompt[i - 1];
    const bool shown = !(options_.skip_special_tokens && tokenizer_->is_special(id));
    if (shown && !tokenizer_->token_bytes(id).empty()) ids_.insert(ids_.begin(), id);
  }
  settled_ = ids_.size();
  if (!ids_.empty()) context_text_ = tokenizer_->decode(ids_, false);
}

void TextStream::append_id(int32_t id) {
  const std::string_view bytes = tokenizer_->token_bytes(id);
  bytes_total_ += static_cast<int64_t>(bytes.size());
  pending_bytes_ += bytes;
  // An id without text is no context: a decoder that trims the beginning of a text would take the next one for it.
  const bool has_text = !bytes.empty() && !(options_.skip_special_tokens && tokenizer_->is_special(id));
  if (has_text) ids_.push_back(id);
  settle(false);
}

// Turns the pending ids into text, unless they end inside a character.
void TextStream::settle(bool at_end) {
  std::string text;
  if (settled_ < ids_.size()) {
    // Special tokens that are to be skipped are not among ids_.
    const std::string whole = tokenizer_->decode(ids_, false);
    const std::string_view more = added(context_text_, whole);
    const bool unfinished = whole.ends_with(kReplacement) || more.empty();
    if (unfinished && !at_end && ids_.size() - settled_ < kPendingIdsMax) return;
    text = more;
    ids_.erase(ids_.begin(), ids_.begin() + static_cast<std::ptrdiff_t>(settled_));
    settled_ = ids_.size();
    context_text_ = tokenizer_->decode(ids_, false);
  }
  if (text.empty() && pending_bytes_.empty()) return;
  const int64_t begin = bytes_total_ - static_cast<int64_t>(pending_bytes_.size());
  pieces_.push_back({begin, std::exchange(pending_bytes_, {}), std::move(text)});
}

// Bytes and text agree but for what a decoder trims at the beginning or replaces; there the cut falls before the
// change.
size_t TextStream::Piece::text_at(int64_t byte) const {
  if (byte <= bytes_begin) return 0;
  const auto offset = static_cast<size_t>(byte - bytes_begin);
  if (offset >= bytes.size()) return text.size();
  const size_t common =
      static_cast<size_t>(std::mismatch(bytes.begin(), bytes.end(), text.begin(), text.end()).first - bytes.begin());
  if (offset <= common) return std::min(offset, text.size());
  const size_t after = bytes.size() - offset;  // bytes behind the cut
  const bool tail_agrees =
      after <= text.size() && std::equal(bytes.end() - static_cast<std::ptrdiff_t>(after), bytes.end(),
                                         text.end() - static_cast<std::ptrdiff_t>(after));
  return tail_agrees ? std::max(common, text.size() - after) : common;
}

// Moves settled text that comes from before byte_limit out, never a part of a character.
std::string TextStream::show(int64_t byte_limit) {
  std::string result;
  while (!pieces_.empty()) {
    const Piece& piece = pieces_.front();
    size_t end = piece.text_at(byte_limit);
    while (end > 0 && end < piece.text.size() && is_continuation(piece.text[end])) --end;
    if (end > shown_) {
      result.append(piece.text, shown_, end - shown_);
      shown_ = end;
    }
    if (piece.bytes_begin + static_cast<int64_t>(piece.bytes.size()) > byte_limit || shown_ < piece.text.size()) break;
    pieces_.pop_front();
    shown_ = 0;
  }
  return result;
}

std::string TextStream::append(std::span<const int32_t> ids, int64_t held_bytes) {
  for (const int32_t id : ids) append_id(id);
  return show(bytes_total_ - std::clamp<int64_t>(held_bytes, 0, bytes_total_));
}

std::string TextStream::finish(int64_t text_end) {
  settle(true);
  return show(text_end < 0 ? std::numeric_limits<int64_t>::max() : text_end);
}

}  // namespace tokenmill
