// JSON from outside and back to one line of text.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace tokenmill {

// Throws Error(kValue) on what is not JSON, and where values nest too deep to be copied and printed safely.
nlohmann::json parse_json(std::string_view text);

// One line; invalid UTF-8 becomes U+FFFD.
template <class Json>
std::string dump_json(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace tokenmill
