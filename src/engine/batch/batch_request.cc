#include "engine/batch/batch_request.h"

#include <algorithm>

#include "engine/batch/openai_request.h"
#include "engine/json_text.h"
#include "engine/sampling_params_json.h"

namespace tokenmill {
namespace {

using nlohmann::json;

void read_native(const json& line, BatchRequest& out) {
  int sources = 0;
  for (const auto& [key, value] : line.items()) {
    if (key == "prompt") {
      if (!value.is_string()) throw Error(ErrorKind::kType, "prompt must be str, got " + dump_json(value) + ".");
      out.request.prompt = value.get<std::string>();
      ++sources;
    } else if (key == "input_ids") {
      out.request.input_ids = read_token_ids(value, "input_ids");
      ++sources;
    } else if (key == "messages") {
      out.request.messages_json = read_messages(value);
      ++sources;
    } else if (key == "sampling_params") {
      apply_sampling_json(value, out.request.sampling_params);
    } else if (key == "custom_id") {
      out.custom_id = value;
    } else {
      throw Error(ErrorKind::kType,
                  "unknown key '" + key + "'; known: prompt, input_ids, messages, sampling_params, custom_id.");
    }
  }
  if (sources != 1) throw Error(ErrorKind::kValue, "give exactly one of prompt, input_ids and messages.");
}

}  // namespace

BatchRequest parse_batch_line(std::string_view text, const BatchOptions& options) {
  const json line = parse_json(text);
  if (!line.is_object()) throw Error(ErrorKind::kType, "a line must be a JSON object.");
  BatchRequest out;
  out.request.sampling_params = options.sampling_params;
  out.request.top_logprobs_num = options.top_logprobs_num;
  out.request.return_logprob = options.return_logprob || options.top_logprobs_num > 0;
  if (line.contains("body") || line.contains("url") || line.contains("method")) {
    read_openai_line(line, out);
  } else {
    read_native(line, out);
  }
  out.request.sampling_params.validate();
  return out;
}

std::string find_custom_id(std::string_view text) {
  // Keeps nothing but that key (at depth 1 is what the line's object holds), and nothing deep enough to overflow a
  // stack.
  constexpr int kDepthMax = 128;
  const auto keep = [](int depth, json::parse_event_t event, const json& parsed) {
    return depth <= kDepthMax && (event != json::parse_event_t::key || depth != 1 || parsed == "custom_id");
  };
  const json line = json::parse(text, keep, /*allow_exceptions=*/false);
  const auto found = line.is_object() ? line.find("custom_id") : line.end();
  return !line.is_object() || found == line.end() || found->is_null() ? "" : dump_json(*found);
}

}  // namespace tokenmill
