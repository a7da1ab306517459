// OpenAI's batch lines: {"custom_id", "method": "POST", "url", "body"}, the body of a chat completion or a completion
// (https://platform.openai.com/docs/api-reference/batch/request-input).
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace tokenmill {

struct BatchRequest;

// Fills form, request, custom_id and model. A body may also set any sampling parameter by our name (top_k, min_p …).
// Throws Error that names the key; what this engine cannot do is an error, never ignored.
void read_openai_line(const nlohmann::json& line, BatchRequest& out);

// Checked parts of both forms of line.
std::vector<int32_t> read_token_ids(const nlohmann::json& value, const std::string& name);
std::string read_messages(const nlohmann::json& value);

}  // namespace tokenmill
