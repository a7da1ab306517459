// Requests from JSON lines and outputs as JSON lines.
//
// In, an object a line: one of "prompt", "input_ids", "messages"; "sampling_params" and "custom_id" if wished.
// Out, an object a finished sample: {"custom_id"?, "index", "sample"?, "text", "output_ids", "meta_info"}.
#pragma once

#include <istream>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "tokenmill/engine.h"

namespace tokenmill::cli {

struct InputItem {
  Request request;
  nlohmann::json custom_id;  // null: none was given
};

// Every line becomes a request with `base`'s settings, its own sampling_params over them. Blank lines are skipped.
// Throws Error naming the source and the line.
std::vector<InputItem> read_requests(std::istream& in, const std::string& source, const Request& base);

nlohmann::ordered_json output_to_json(const Output& output);

// Throws json::exception, or Error(kValue) where values nest too deep to be copied and printed safely.
nlohmann::json parse_json(std::string_view text);

// JSON on one line; invalid UTF-8 becomes U+FFFD.
std::string dump_line(const nlohmann::ordered_json& value);

}  // namespace tokenmill::cli
