// The one place that turns a request's ids into shown text: the prompt's tail as context, UTF-8 held back, special
// tokens skipped, stop strings trimmed. The joined deltas are the final text, however the ids were cut into appends.
//
//   ids    … tail │ settled, no longer needed │ context … settled_ … │ pending: ends inside a character
//   text                shown, gone           │ settled, held bytes  │ not yet text
//
// All text joined is decode(tail + output) less decode(tail), whatever the ids.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace tokenmill {

struct TextStreamOptions {
  bool skip_special_tokens = true;
};

class TextStream {
 public:
  // prompt: its last few ids are context, so that the first output token keeps its leading space.
  TextStream(std::shared_ptr<const Tokenizer> tokenizer, std::span<const int32_t> prompt, TextStreamOptions options);

  // Appends ids and returns the text that became final. The last `held_bytes` bytes of the output's byte text (special
  // tokens spelt out, StopMatcher::held_bytes) stay unshown, and so does an unfinished UTF-8 character.
  std::string append(std::span<const int32_t> ids, int64_t held_bytes);
  // Ends the stream: all that is still held, but nothing at or after byte `text_end` of the output's byte text
  // (StopMatch::begin, or ::end with no_stop_trim; -1: no limit).
  std::string finish(int64_t text_end);

 private:
  // Where a stretch of settled text lies in the byte text.
  struct Piece {
    int64_t bytes_begin;
    std::string bytes, text;
    size_t text_at(int64_t byte) const;  // how much of `text` comes from before that byte
  };

  void append_id(int32_t id);
  void push(int32_t id, std::string_view bytes);
  void settle(bool at_end);
  std::string show(int64_t byte_limit);

  std::shared_ptr<const Tokenizer> tokenizer_;
  TextStreamOptions options_;
  std::vector<int32_t> ids_;  // context, then pending
  size_t settled_ = 0;        // of ids_
  std::string context_text_;  // decode of the settled ids in ids_
  std::string unfinished_;    // bytes of the character that ids_ end inside of
  // Where ids_ end with a run of byte tokens that is no valid UTF-8: those that show it, after which all is U+FFFD.
  std::vector<int32_t> broken_run_;
  std::string pending_bytes_;
  int64_t bytes_total_ = 0;
  std::deque<Piece> pieces_;  // settled, not yet shown in full
  size_t shown_ = 0;          // bytes of the first piece's text
};

}  // namespace tokenmill
