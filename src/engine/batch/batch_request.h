// A line of a batch's input as a request: an object of our own form, or one of OpenAI's batch API.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "tokenmill/batch.h"
#include "tokenmill/engine.h"

namespace tokenmill {

enum class LineForm { kNative, kChat, kCompletion };

struct BatchRequest {
  LineForm form = LineForm::kNative;
  Request request;
  nlohmann::json custom_id;  // null: none was given
  std::string model;         // OpenAI: the name that the line asks for, echoed; "": none
};

// Throws Error with the key and the rule. options: what the line does not say itself.
BatchRequest parse_batch_line(std::string_view text, const BatchOptions& options);

// The line's custom_id as JSON text, or "" where it has none or is not JSON; cheaper than all of the line.
std::string find_custom_id(std::string_view text);

}  // namespace tokenmill
