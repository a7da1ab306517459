// Chat messages as the JSON that Request::messages_json takes.
#include <nlohmann/json.hpp>

#include "tokenmill/engine.h"

namespace tokenmill {

std::string messages_to_json(const std::vector<ChatMessage>& messages) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const ChatMessage& message : messages) list.push_back({{"role", message.role}, {"content", message.content}});
  return list.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace tokenmill
