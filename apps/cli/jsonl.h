// JSON in and out of the command line.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace tokenmill::cli {

// Throws json::exception, or Error(kValue) where values nest too deep to be copied and printed safely.
nlohmann::json parse_json(std::string_view text);

// JSON on one line; invalid UTF-8 becomes U+FFFD.
std::string dump_line(const nlohmann::ordered_json& value);

}  // namespace tokenmill::cli
