#include "engine/batch/batch_record.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <utility>

#include "engine/json_text.h"
#include "engine/output_json.h"

namespace tokenmill {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr std::string_view kIdPrefix = "batch_req_";

std::optional<RecordId> parse_id(std::string_view text) {
  if (!text.starts_with(kIdPrefix)) return std::nullopt;
  text.remove_prefix(kIdPrefix.size());
  RecordId id;
  const char* end = text.data() + text.size();
  const auto index = std::from_chars(text.data(), end, id.index);
  if (index.ec != std::errc() || id.index < 0 || index.ptr == end || *index.ptr != '_') return std::nullopt;
  const auto fingerprint = std::from_chars(index.ptr + 1, end, id.fingerprint, 16);
  if (fingerprint.ec != std::errc() || fingerprint.ptr != end) return std::nullopt;
  return id;
}

std::string native_lines(const BatchRequest& request, const RecordId& id, std::vector<Output>& outputs) {
  std::string text;
  for (Output& output : outputs) {
    output.meta_info.id = to_string(id);
    ordered_json line;
    if (!request.custom_id.is_null()) line["custom_id"] = request.custom_id;
    line["index"] = id.index;
    if (outputs.size() > 1) line["sample"] = output.sample;
    line.update(output_to_json(output));
    text += dump_json(line) + "\n";
  }
  return text;
}

std::string token_text(const TokenLogprob& token) { return token.text.value_or(std::to_string(token.token_id)); }

ordered_json bytes_of(const std::string& text) {
  ordered_json bytes = ordered_json::array();
  for (const char c : text) bytes.push_back(static_cast<unsigned char>(c));
  return bytes;
}

ordered_json chat_logprob(const TokenLogprob& token) {
  const std::string text = token_text(token);
  return {{"token", text}, {"logprob", token.logprob.value_or(0)}, {"bytes", bytes_of(text)}};
}

ordered_json chat_logprobs(const MetaInfo& info) {
  ordered_json content = ordered_json::array();
  for (size_t i = 0; i < info.output_token_logprobs.size(); ++i) {
    ordered_json entry = chat_logprob(info.output_token_logprobs[i]);
    ordered_json top = ordered_json::array();
    if (i < info.output_top_logprobs.size()) {
      for (const TokenLogprob& token : info.output_top_logprobs[i]) top.push_back(chat_logprob(token));
    }
    entry["top_logprobs"] = std::move(top);
    content.push_back(std::move(entry));
  }
  return {{"content", std::move(content)}};
}

ordered_json completion_logprobs(const MetaInfo& info) {
  ordered_json tokens = ordered_json::array(), logprobs = ordered_json::array(), offsets = ordered_json::array();
  ordered_json top = ordered_json::array();
  int64_t offset = 0;
  for (const TokenLogprob& token : info.output_token_logprobs) {
    const std::string text = token_text(token);
    offsets.push_back(offset);
    // In characters, as the field's other users count: bytes that begin one.
    offset +=
        std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; });
    tokens.push_back(text);
    logprobs.push_back(token.logprob.value_or(0));
  }
  for (const std::vector<TokenLogprob>& position : info.output_top_logprobs) {
    ordered_json entry = ordered_json::object();
    for (const TokenLogprob& token : position) entry[token_text(token)] = token.logprob.value_or(0);
    top.push_back(std::move(entry));
  }
  return {{"tokens", std::move(tokens)},
          {"token_logprobs", std::move(logprobs)},
          {"top_logprobs", top.empty() ? ordered_json(nullptr) : std::move(top)},
          {"text_offset", std::move(offsets)}};
}

ordered_json choice_of(const Output& output, bool chat) {
  const MetaInfo& info = output.meta_info;
  const bool stopped = info.finish_reason && info.finish_reason->type == FinishReason::Type::kStop;
  ordered_json choice = {{"index", output.sample}};
  if (chat) {
    choice["message"] = {{"role", "assistant"}, {"content", output.text}};
  } else {
    choice["text"] = output.text;
  }
  const bool logprobs = !info.output_token_logprobs.empty();
  choice["logprobs"] = !logprobs ? ordered_json(nullptr) : chat ? chat_logprobs(info) : completion_logprobs(info);
  choice["finish_reason"] = stopped ? "stop" : "length";
  return choice;
}

std::string openai_line(const BatchRequest& request, const RecordId& id, const std::vector<Output>& outputs,
                        const RecordContext& context) {
  const bool chat = request.form == LineForm::kChat;
  const std::string number = to_string(id).substr(kIdPrefix.size());
  ordered_json choices = ordered_json::array();
  int64_t completion_tokens = 0;
  for (const Output& output : outputs) {
    choices.push_back(choice_of(output, chat));
    completion_tokens += output.meta_info.completion_tokens;
  }
  const MetaInfo& first = outputs.front().meta_info;
  ordered_json body = {{"id", (chat ? "chatcmpl-" : "cmpl-") + number},
                       {"object", chat ? "chat.completion" : "text_completion"},
                       {"created", context.created},
                       {"model", request.model.empty() ? context.served_model_name : request.model},
                       {"choices", std::move(choices)},
                       {"usage",
                        {{"prompt_tokens", first.prompt_tokens},
                         {"completion_tokens", completion_tokens},
                         {"total_tokens", first.prompt_tokens + completion_tokens},
                         {"prompt_tokens_details", {{"cached_tokens", first.cached_tokens}}}}}};
  const ordered_json line = {
      {"id", to_string(id)},
      {"custom_id", request.custom_id},
      {"response", {{"status_code", 200}, {"request_id", "req_" + number}, {"body", std::move(body)}}},
      {"error", nullptr}};
  return dump_json(line) + "\n";
}

}  // namespace

std::string to_string(const RecordId& id) { return fmt::format("{}{}_{:016x}", kIdPrefix, id.index, id.fingerprint); }

std::optional<RecordId> find_record_id(std::string_view line) {
  // Keeps the ids alone: a result may be long.
  const auto keep = [](int depth, json::parse_event_t event, const json& parsed) {
    if (event != json::parse_event_t::key) return true;
    return depth == 1 ? parsed == "id" || parsed == "meta_info" : depth == 2 && parsed == "id";
  };
  const json parsed = json::parse(line, keep, /*allow_exceptions=*/false);
  if (!parsed.is_object()) return std::nullopt;
  const auto meta = parsed.find("meta_info");
  const json& holder = meta != parsed.end() && meta->is_object() ? *meta : parsed;
  const auto id = holder.find("id");
  return id == holder.end() || !id->is_string() ? std::nullopt : parse_id(id->get_ref<const std::string&>());
}

std::string result_lines(const BatchRequest& request, const RecordId& id, std::vector<Output>& outputs,
                         const RecordContext& context) {
  return request.form == LineForm::kNative ? native_lines(request, id, outputs)
                                           : openai_line(request, id, outputs, context);
}

std::string error_line(const RecordId& id, const std::string& custom_id, int64_t line, std::string_view code,
                       std::string_view message) {
  const ordered_json record = {{"id", to_string(id)},
                               {"custom_id", ordered_json::parse(custom_id.empty() ? "null" : custom_id)},
                               {"line", line},
                               {"response", nullptr},
                               {"error", {{"code", code}, {"message", message}}}};
  return dump_json(record) + "\n";
}

}  // namespace tokenmill
