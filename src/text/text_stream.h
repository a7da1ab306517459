// The one place that turns a request's ids into shown text: the prompt's tail as context, UTF-8 held back, special
// tokens skipped, stop strings trimmed. The joined deltas always equal the final text.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace tokenmill {

struct TextStreamOptions {
  bool skip_special_tokens = true;
  bool spaces_between_special_tokens = true;
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
  std::shared_ptr<const Tokenizer> tokenizer_;
  TextStreamOptions options_;
  std::vector<int32_t> ids_;      // prompt tail, then output
  size_t prefix_begin_ = 0, read_begin_ = 0;
};

}  // namespace tokenmill
