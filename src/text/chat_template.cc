#include "text/chat_template.h"

#include "text/shim_call.h"
#include "tokenmill/error.h"

namespace tokenmill {

std::string render_chat_template(const std::string& template_text, const ChatTemplateInput& input) {
  TmChatInput raw{};
  raw.source = to_slice(template_text);
  raw.messages_json = to_slice(input.messages_json);
  raw.kwargs_json = to_slice(input.kwargs_json);
  raw.bos_token = to_slice(input.bos_token);
  raw.eos_token = to_slice(input.eos_token);
  raw.has_frozen_now = input.frozen_now.has_value();
  if (input.frozen_now) raw.frozen_now = to_slice(*input.frozen_now);
  TmBytes text{}, error{};
  if (!tm_chat_render(&raw, &text, &error)) throw Error(ErrorKind::kValue, take(error));
  return take(text);
}

}  // namespace tokenmill
