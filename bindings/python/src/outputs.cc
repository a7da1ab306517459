// Output -> the dicts of the contract, section 4.
#include <array>

#include "convert.h"

namespace tokenmill::python {
namespace {

nb::object text_of(std::string_view text) {
  nb::object object = nb::steal(PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace"));
  if (!object) throw nb::python_error();
  return object;
}

template <class Id>
nb::object ids_of(const std::vector<Id>& ids) {
  nb::object list = nb::steal(PyList_New(static_cast<Py_ssize_t>(ids.size())));
  for (size_t i = 0; i < ids.size(); ++i) {
    PyList_SetItem(list.ptr(), static_cast<Py_ssize_t>(i), PyLong_FromLong(ids[i]));
  }
  return list;
}

void put(nb::dict& dict, const char* key, nb::handle value) {
  // Interned, so that a hundred thousand outputs share their keys.
  const nb::object name = nb::steal(PyUnicode_InternFromString(key));
  if (!name || PyDict_SetItem(dict.ptr(), name.ptr(), value.ptr()) != 0) throw nb::python_error();
}
void put(nb::dict& dict, const char* key, int64_t value) { put(dict, key, nb::int_(value)); }

nb::object reason_of(const std::optional<FinishReason>& reason) {
  if (!reason) return nb::none();
  nb::dict dict;
  switch (reason->type) {
    case FinishReason::Type::kLength:
      put(dict, "type", nb::str("length"));
      put(dict, "length", reason->length);
      break;
    case FinishReason::Type::kStop:
      put(dict, "type", nb::str("stop"));
      if (const auto* id = std::get_if<int64_t>(&reason->matched)) put(dict, "matched", *id);
      if (const auto* text = std::get_if<std::string>(&reason->matched)) put(dict, "matched", text_of(*text));
      if (std::holds_alternative<std::monostate>(reason->matched)) put(dict, "matched", nb::none());
      break;
    case FinishReason::Type::kAbort:
      put(dict, "type", nb::str("abort"));
      put(dict, "message", text_of(reason->message));
      break;
  }
  return dict;
}

nb::object logprob_of(const TokenLogprob& token) {
  const nb::object logprob = token.logprob ? nb::object(nb::float_(*token.logprob)) : nb::none();
  const nb::object text = token.text ? text_of(*token.text) : nb::none();
  return nb::make_tuple(logprob, token.token_id, text);
}

nb::object logprobs_of(const std::vector<TokenLogprob>& tokens) {
  nb::list list;
  for (const TokenLogprob& token : tokens) list.append(logprob_of(token));
  return list;
}

nb::object logprobs_of(const std::vector<std::vector<TokenLogprob>>& positions) {
  nb::list list;
  for (const auto& tokens : positions) list.append(logprobs_of(tokens));
  return list;
}

nb::dict meta_of(const MetaInfo& info, bool with_logprobs) {
  nb::dict meta;
  put(meta, "id", text_of(info.id));
  put(meta, "finish_reason", reason_of(info.finish_reason));
  put(meta, "prompt_tokens", info.prompt_tokens);
  put(meta, "completion_tokens", info.completion_tokens);
  put(meta, "cached_tokens", info.cached_tokens);
  put(meta, "num_retractions", info.num_retractions);
  put(meta, "e2e_latency", nb::float_(info.e2e_latency));
  if (!with_logprobs) return meta;
  put(meta, "input_token_logprobs", logprobs_of(info.input_token_logprobs));
  put(meta, "output_token_logprobs", logprobs_of(info.output_token_logprobs));
  if (!info.input_top_logprobs.empty()) put(meta, "input_top_logprobs", logprobs_of(info.input_top_logprobs));
  if (!info.output_top_logprobs.empty()) put(meta, "output_top_logprobs", logprobs_of(info.output_top_logprobs));
  if (!info.input_token_ids_logprobs.empty()) {
    put(meta, "input_token_ids_logprobs", logprobs_of(info.input_token_ids_logprobs));
  }
  if (!info.output_token_ids_logprobs.empty()) {
    put(meta, "output_token_ids_logprobs", logprobs_of(info.output_token_ids_logprobs));
  }
  return meta;
}

}  // namespace

nb::dict to_dict(const Output& output, bool with_index, bool with_logprobs) {
  nb::dict dict;
  put(dict, "text", text_of(output.text));
  put(dict, "output_ids", ids_of(output.output_ids));
  put(dict, "meta_info", meta_of(output.meta_info, with_logprobs));
  if (output.prompt_token_ids) put(dict, "prompt_token_ids", ids_of(*output.prompt_token_ids));
  if (with_index) put(dict, "index", output.index);
  return dict;
}

}  // namespace tokenmill::python
