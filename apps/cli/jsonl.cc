#include "cli/jsonl.h"

#include "tokenmill/error.h"

namespace tokenmill::cli {

using nlohmann::json;
using nlohmann::ordered_json;

json parse_json(std::string_view text) {
  static constexpr int kDepthMax = 128;
  return json::parse(text, [](int depth, json::parse_event_t, const json&) {
    if (depth > kDepthMax) {
      throw Error(ErrorKind::kValue, "JSON values must nest at most " + std::to_string(kDepthMax) + " levels deep.");
    }
    return true;
  });
}

std::string dump_line(const ordered_json& value) {
  return value.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

}  // namespace tokenmill::cli
