#include "engine/output_json.h"

#include <utility>

#include "engine/json_text.h"

namespace tokenmill {
namespace {

using nlohmann::ordered_json;

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

std::string to_json(const Output& output) { return dump_json(output_to_json(output)); }

}  // namespace tokenmill
