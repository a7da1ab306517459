#include "text/text_stream.h"

#include <algorithm>
#include <limits>
#include <string_view>
#include <utility>

namespace tokenmill {
namespace {

// Context ids of the prompt. More than the bytes of one character, so that a character begun in it can be finished.
constexpr size_t kTailIds = 6;
// Of a character that a tail of byte tokens may begin in the middle of.
constexpr size_t kContinuationsMax = 3;
// Ids that add no text wait for one that does, such as a first space that a decoder trims, and invalid byte tokens for
// the end of their run. This bounds the work per id.
constexpr size_t kPendingIdsMax = 64;
constexpr std::string_view kReplacement = "\xef\xbf\xbd";

bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xc0) == 0x80; }

// Of the character that begins with `lead`; 1 where none does.
size_t character_bytes(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0xc2 || byte > 0xf4 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
}

// Bytes of a character that `bytes` ends inside of. What no further byte makes a character of does not count.
size_t unfinished_bytes(std::string_view bytes) {
  const size_t longest = std::min<size_t>(bytes.size(), 3);
  for (size_t count = 1; count <= longest; ++count) {
    const std::string_view end = bytes.substr(bytes.size() - count);
    if (is_continuation(end[0])) continue;
    if (count >= character_bytes(end[0])) return 0;
    if (count == 1) return 1;
    // Overlong forms, surrogates and what is beyond U+10FFFF show in the second byte.
    const auto lead = static_cast<unsigned char>(end[0]), second = static_cast<unsigned char>(end[1]);
    const unsigned least = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    const unsigned most = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    return second >= least && second <= most ? count : 0;
  }
  return 0;
}

// Of the beginning of a character and one byte more: whether they are one, or still the beginning of one.
bool continues_character(std::string_view bytes) {
  if (unfinished_bytes(bytes) == bytes.size()) return true;
  if (bytes.size() != character_bytes(bytes.front())) return false;
  return bytes.size() == 1 ? (bytes.front() & 0x80) == 0 : is_continuation(bytes.back());
}

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

// What `whole` adds to `before`, of which it is a continuation except where it completes a character that the prompt
// had begun, or turns a run of byte tokens of the prompt into U+FFFD; then characters are counted.
std::string_view added(std::string_view before, std::string_view whole) {
  if (whole.starts_with(before)) return whole.substr(before.size());
  std::string_view clean = before;
  while (clean.ends_with(kReplacement)) {
    clean.remove_suffix(kReplacement.size());
    if (whole.starts_with(clean)) return whole.substr(clean.size());
  }
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
  // A run of byte tokens that begins inside a character would not be valid, whatever follows.
  for (size_t i = 0; i < kContinuationsMax && !ids_.empty() && tokenizer_->is_byte_token(ids_.front()); ++i) {
    if (!is_continuation(tokenizer_->token_bytes(ids_.front()).front())) break;
    ids_.erase(ids_.begin());
  }
  for (const int32_t id : std::exchange(ids_, {})) push(id, tokenizer_->token_bytes(id));
  settled_ = ids_.size();
  if (!ids_.empty()) context_text_ = tokenizer_->decode(ids_, false);
}

void TextStream::push(int32_t id, std::string_view bytes) {
  ids_.push_back(id);
  const bool ends_character = static_cast<unsigned char>(bytes.back()) < 0x80;
  if (ends_character && unfinished_.empty() && broken_run_.empty()) return;  // most ids
  unfinished_ += bytes;
  if (!tokenizer_->is_byte_token(id)) {
    broken_run_.clear();
  } else if (!broken_run_.empty()) {
    unfinished_.clear();
  } else if (!continues_character(unfinished_)) {
    broken_run_.assign(ids_.end() - static_cast<std::ptrdiff_t>(unfinished_.size()), ids_.end());
    unfinished_.clear();
  }
  unfinished_.erase(0, unfinished_.size() - unfinished_bytes(unfinished_));
}

void TextStream::append_id(int32_t id) {
  const std::string_view bytes = tokenizer_->token_bytes(id);
  bytes_total_ += static_cast<int64_t>(bytes.size());
  pending_bytes_ += bytes;
  // An id without text is no context: a decoder that trims the beginning of a text would take the next one for it.
  const bool has_text = !bytes.empty() && !(options_.skip_special_tokens && tokenizer_->is_special(id));
  if (has_text) push(id, bytes);
  settle(false);
}

// Turns the pending ids into text, unless what follows may still change it.
void TextStream::settle(bool at_end) {
  std::string text;
  if (settled_ < ids_.size()) {
    const bool may_wait = !at_end && ids_.size() - settled_ < kPendingIdsMax;
    if ((!at_end && !unfinished_.empty()) || (may_wait && !broken_run_.empty())) return;
    // Special tokens that are to be skipped are not among ids_.
    const std::string whole = tokenizer_->decode(ids_, false);
    const std::string_view more = added(context_text_, whole);
    if (may_wait && more.empty()) return;
    text = more;
    ids_.erase(ids_.begin(), ids_.begin() + static_cast<std::ptrdiff_t>(settled_));
    if (!broken_run_.empty()) ids_ = broken_run_;
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
