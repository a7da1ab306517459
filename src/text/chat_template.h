// Renders a Jinja chat template as transformers' apply_chat_template does (minijinja with Hugging Face's extras).
#pragma once

#include <optional>
#include <string>

namespace tokenmill {

struct ChatTemplateInput {
  std::string messages_json = "[]";  // list of messages, in the order of their keys
  std::string kwargs_json = "{}";  // tools, documents, add_generation_prompt, continue_final_message, enable_thinking …
  std::string bos_token, eos_token;
  std::optional<std::string> frozen_now;  // strftime_now's clock, "2024-07-26 12:00:00"; nullopt: the real one
};

// Throws Error(kValue) with the template's own message when it raises, or the line when it does not parse.
std::string render_chat_template(const std::string& template_text, const ChatTemplateInput& input);

}  // namespace tokenmill
