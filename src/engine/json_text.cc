#include "engine/json_text.h"

#include "tokenmill/error.h"

namespace tokenmill {

using nlohmann::json;

json parse_json(std::string_view text) {
  // Copies and prints of a value recurse; no request comes near this depth.
  static constexpr int kDepthMax = 128;
  try {
    return json::parse(text, [](int depth, json::parse_event_t, const json&) {
      if (depth > kDepthMax) {
        throw Error(ErrorKind::kValue, "JSON values must nest at most " + std::to_string(kDepthMax) + " levels deep.");
      }
      return true;
    });
  } catch (const json::exception& error) {
    throw Error(ErrorKind::kValue, std::string("not valid JSON: ") + error.what());
  }
}

}  // namespace tokenmill
