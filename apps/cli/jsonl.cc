#include "cli/jsonl.h"

#include <algorithm>

#include "cli/sampling_flags.h"

namespace tokenmill::cli {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

InputItem parse_item(const json& line, const Request& base) {
  if (!line.is_object()) throw Error(ErrorKind::kType, "a line must be a JSON object.");
  InputItem item{base, nullptr};
  int sources = 0;
  for (const auto& [key, value] : line.items()) {
    if (key == "prompt") {
      if (!value.is_string()) throw Error(ErrorKind::kType, "prompt must be str, got " + value.dump() + ".");
      item.request.prompt = value.get<std::string>();
      ++sources;
    } else if (key == "input_ids") {
      if (!value.is_array() || !std::all_of(value.begin(), value.end(), [](const json& id) {
            if (id.is_number_unsigned()) return id.get<uint64_t>() <= INT32_MAX;
            return id.is_number_integer() && id.get<int64_t>() >= INT32_MIN;
          })) {
        throw Error(ErrorKind::kType, "input_ids must be a list of 32-bit int.");
      }
      item.request.input_ids = value.get<std::vector<int32_t>>();
      ++sources;
    } else if (key == "messages") {
      if (!value.is_array()) throw Error(ErrorKind::kType, "messages must be a list.");
      item.request.messages_json = value.dump();
      ++sources;
    } else if (key == "sampling_params") {
      apply_sampling_json(value, item.request.sampling_params);
    } else if (key == "custom_id") {
      item.custom_id = value;
    } else {
      throw Error(ErrorKind::kType,
                  "unknown key '" + key + "'; known: prompt, input_ids, messages, sampling_params, custom_id.");
    }
  }
  if (sources != 1) throw Error(ErrorKind::kValue, "give exactly one of prompt, input_ids and messages.");
  item.request.sampling_params.validate();
  return item;
}

ordered_json reason_to_json(const std::optional<FinishReason>& reason) {
  if (!reason) return nullptr;
  switch (reason->type) {
    case FinishReason::Type::kLength:
      return {{"type", "length"}, {"length", reason->length}};
    case FinishReason::Type::kStop: {
      ordered_json matched;
      if (const auto* id = std::get_if<int64_t>(&reason->matched)) matched = *id;
      if (const auto* text = std::get_if<std::string>(&reason->matched)) matched = *text;
      return {{"type", "stop"}, {"matched", matched}};
    }
    case FinishReason::Type::kAbort:
      return {{"type", "abort"}, {"message", reason->message}};
  }
  return nullptr;
}

ordered_json logprob_to_json(const TokenLogprob& token) {
  return ordered_json::array({token.logprob ? ordered_json(*token.logprob) : ordered_json(nullptr), token.token_id,
                              token.text ? ordered_json(*token.text) : ordered_json(nullptr)});
}

ordered_json logprobs_to_json(const std::vector<TokenLogprob>& tokens) {
  ordered_json list = ordered_json::array();
  for (const TokenLogprob& token : tokens) list.push_back(logprob_to_json(token));
  return list;
}

ordered_json logprobs_to_json(const std::vector<std::vector<TokenLogprob>>& positions) {
  ordered_json list = ordered_json::array();
  for (const auto& tokens : positions) list.push_back(logprobs_to_json(tokens));
  return list;
}

template <class List>
void put_logprobs(ordered_json& meta, const char* name, const List& list) {
  if (!list.empty()) meta[name] = logprobs_to_json(list);
}

}  // namespace

std::vector<InputItem> read_requests(std::istream& in, const std::string& source, const Request& base) {
  std::vector<InputItem> items;
  std::string text;
  for (int64_t line = 1; std::getline(in, text); ++line) {
    if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = source + ": line " + std::to_string(line) + ": ";
    try {
      items.push_back(parse_item(parse_json(text), base));
    } catch (const json::exception& error) {
      throw Error(ErrorKind::kValue, where + "not a JSON object: " + error.what());
    } catch (const Error& error) {
      throw Error(error.kind(), where + error.what());
    }
  }
  if (in.bad()) throw Error(ErrorKind::kRuntime, source + ": cannot be read");
  return items;
}

ordered_json output_to_json(const Output& output) {
  const MetaInfo& info = output.meta_info;
  ordered_json meta = {{"id", info.id},
                       {"finish_reason", reason_to_json(info.finish_reason)},
                       {"prompt_tokens", info.prompt_tokens},
                       {"completion_tokens", info.completion_tokens},
                       {"cached_tokens", info.cached_tokens},
                       {"num_retractions", info.num_retractions},
                       {"e2e_latency", info.e2e_latency}};
  put_logprobs(meta, "input_token_logprobs", info.input_token_logprobs);
  put_logprobs(meta, "output_token_logprobs", info.output_token_logprobs);
  put_logprobs(meta, "input_top_logprobs", info.input_top_logprobs);
  put_logprobs(meta, "output_top_logprobs", info.output_top_logprobs);
  put_logprobs(meta, "input_token_ids_logprobs", info.input_token_ids_logprobs);
  put_logprobs(meta, "output_token_ids_logprobs", info.output_token_ids_logprobs);
  return {{"text", output.text}, {"output_ids", output.output_ids}, {"meta_info", std::move(meta)}};
}

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
