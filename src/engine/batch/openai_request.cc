#include "engine/batch/openai_request.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "engine/batch/batch_request.h"
#include "engine/json_text.h"
#include "engine/sampling_params_json.h"
#include "engine/text_repr.h"

namespace tokenmill {
namespace {

using nlohmann::json;

[[noreturn]] void wrong_type(const std::string& name, const std::string& type, const json& value) {
  throw Error(ErrorKind::kType, name + " must be " + type + ", got " + dump_json(value) + ".");
}

[[noreturn]] void not_offered(const std::string& key, const json& value) {
  throw Error(ErrorKind::kUnsupported, "body." + key + " = " + dump_json(value) + " is not built: leave it out.");
}

// Names that OpenAI gives to parameters of ours, and those that have no effect on what is generated.
struct Alias {
  std::string_view name, param;
};
constexpr std::array kAliases = {Alias{"max_tokens", "max_new_tokens"},
                                 Alias{"max_completion_tokens", "max_new_tokens"},
                                 Alias{"min_tokens", "min_new_tokens"}};
constexpr std::array<std::string_view, 8> kWithoutEffect = {"user",
                                                            "metadata",
                                                            "store",
                                                            "service_tier",
                                                            "safety_identifier",
                                                            "prompt_cache_key",
                                                            "parallel_tool_calls",
                                                            "stream_options"};

// Keys whose one value that changes nothing is accepted; any other is an error.
bool is_harmless(const std::string& key, const json& value) {
  if (key == "stream" || key == "echo") return value == false;
  if (key == "suffix") return value == "";
  if (key == "best_of") return value == 1;
  if (key == "tools" || key == "functions") return value.is_array() && value.empty();
  if (key == "tool_choice" || key == "function_call") return value == "none" || value == "auto";
  if (key == "modalities") return value == json::array({"text"});
  return false;
}

bool is_limited(const std::string& key) {
  static constexpr std::array<std::string_view, 8> kLimited = {"stream", "echo",      "suffix",      "best_of",
                                                               "tools",  "functions", "tool_choice", "function_call"};
  return key == "modalities" || std::find(kLimited.begin(), kLimited.end(), key) != kLimited.end();
}

std::string nearest_param(const std::string& key) {
  std::vector<std::string_view> names;
  for (const SamplingParamsField& field : sampling_params_fields()) names.push_back(field.name);
  return "; the nearest sampling parameter is " + python_repr(nearest_name(key, names));
}

int64_t read_count(const std::string& name, const json& value) {
  if (!value.is_number_integer()) wrong_type(name, "int", value);
  return value.get<int64_t>();
}

void read_prompt(const json& value, Request& request) {
  const json& one = value.is_array() && value.size() == 1 && !value[0].is_number() ? value[0] : value;
  if (one.is_string()) {
    request.prompt = one.get<std::string>();
  } else if (one.is_array() && !one.empty() && !one[0].is_number()) {
    throw Error(ErrorKind::kUnsupported, "body.prompt holds several prompts; give each a line of its own.");
  } else {
    request.input_ids = read_token_ids(one, "body.prompt");
  }
}

void read_response_format(const json& value, SamplingParams& params) {
  const std::string type = value.is_object() ? value.value("type", json()).is_string() ? value["type"] : "" : "";
  if (type == "text") return;
  if (type == "json_object") {
    params.json_schema = R"({"type": "object"})";
  } else if (type == "json_schema" && value.contains("json_schema") && value["json_schema"].is_object() &&
             value["json_schema"].contains("schema")) {
    params.json_schema = dump_json(value["json_schema"]["schema"]);
  } else {
    wrong_type("body.response_format", "an object of type text, json_object or json_schema (with its schema)", value);
  }
}

void read_logprobs(const std::string& key, const json& value, BatchRequest& out) {
  if (key == "top_logprobs") {
    out.request.top_logprobs_num = read_count("body.top_logprobs", value);
  } else if (out.form == LineForm::kChat) {
    if (!value.is_boolean()) wrong_type("body.logprobs", "bool", value);
    out.request.return_logprob = value.get<bool>();
  } else {
    out.request.top_logprobs_num = read_count("body.logprobs", value);
    out.request.return_logprob = true;
  }
}

void read_body_key(const std::string& key, const json& value, BatchRequest& out) {
  SamplingParams& params = out.request.sampling_params;
  const auto alias = std::find_if(kAliases.begin(), kAliases.end(), [&](const Alias& a) { return a.name == key; });
  if (key == "model") {
    if (!value.is_string()) wrong_type("body.model", "str", value);
    out.model = value.get<std::string>();
  } else if (key == "messages" && out.form == LineForm::kChat) {
    out.request.messages_json = read_messages(value);
  } else if (key == "chat_template_kwargs" && out.form == LineForm::kChat) {
    if (!value.is_object()) wrong_type("body.chat_template_kwargs", "an object", value);
    out.request.chat_kwargs_json = dump_json(value);
  } else if (key == "prompt" && out.form == LineForm::kCompletion) {
    read_prompt(value, out.request);
  } else if (alias != kAliases.end()) {
    set_sampling_json(params, alias->param, value);
  } else if (key == "logprobs" || (key == "top_logprobs" && out.form == LineForm::kChat)) {
    read_logprobs(key, value, out);
  } else if (key == "response_format") {
    read_response_format(value, params);
  } else if (is_limited(key)) {
    if (!is_harmless(key, value)) not_offered(key, value);
  } else if (is_sampling_param(key)) {
    set_sampling_json(params, key, value);
  } else if (std::find(kWithoutEffect.begin(), kWithoutEffect.end(), key) == kWithoutEffect.end()) {
    throw Error(ErrorKind::kType, "unknown key 'body." + key + "'" + nearest_param(key) + ".");
  }
}

void read_body(const json& body, BatchRequest& out) {
  if (!body.is_object()) wrong_type("body", "an object", body);
  for (const auto& [key, value] : body.items()) {
    if (!value.is_null()) read_body_key(key, value, out);
  }
  if (out.request.top_logprobs_num > 0 && !out.request.return_logprob) {
    throw Error(ErrorKind::kValue, "body.top_logprobs needs body.logprobs = true.");
  }
  const bool chat = out.form == LineForm::kChat;
  if (chat ? !out.request.messages_json : !out.request.prompt && !out.request.input_ids) {
    throw Error(ErrorKind::kValue, std::string("body.") + (chat ? "messages" : "prompt") + " is missing.");
  }
}

}  // namespace

std::vector<int32_t> read_token_ids(const json& value, const std::string& name) {
  const bool ids = value.is_array() && std::all_of(value.begin(), value.end(), [](const json& id) {
                     if (id.is_number_unsigned()) return id.get<uint64_t>() <= INT32_MAX;
                     return id.is_number_integer() && id.get<int64_t>() >= INT32_MIN;
                   });
  if (!ids) throw Error(ErrorKind::kType, name + " must be a list of 32-bit int.");
  return value.get<std::vector<int32_t>>();
}

std::string read_messages(const json& value) {
  if (!value.is_array()) throw Error(ErrorKind::kType, "messages must be a list.");
  return dump_json(value);
}

void read_openai_line(const json& line, BatchRequest& out) {
  for (const auto& [key, value] : line.items()) {
    if (key != "custom_id" && key != "method" && key != "url" && key != "body") {
      throw Error(ErrorKind::kType, "unknown key '" + key + "'; known: custom_id, method, url, body.");
    }
  }
  if (!line.contains("custom_id")) throw Error(ErrorKind::kValue, "custom_id is missing.");
  if (!line["custom_id"].is_string()) wrong_type("custom_id", "str", line["custom_id"]);
  out.custom_id = line["custom_id"];
  if (line.contains("method") && line["method"] != "POST") wrong_type("method", "\"POST\"", line["method"]);
  const json url = line.value("url", json());
  if (url == "/v1/chat/completions") {
    out.form = LineForm::kChat;
  } else if (url == "/v1/completions") {
    out.form = LineForm::kCompletion;
  } else {
    wrong_type("url", "/v1/chat/completions or /v1/completions", url);
  }
  if (!line.contains("body")) throw Error(ErrorKind::kValue, "body is missing.");
  read_body(line["body"], out);
}

}  // namespace tokenmill
