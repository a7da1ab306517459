// Output -> the dicts of the contract, section 4.
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

// A key of the dicts, interned once, so that a hundred thousand outputs share them. Lives as long as the process.
class Key {
 public:
  explicit Key(const char* name) : name_(PyUnicode_InternFromString(name)) {
    if (name_ == nullptr) throw nb::python_error();
  }
  PyObject* get() const { return name_; }

 private:
  PyObject* name_;
};

struct Keys {
  Key text{"text"}, output_ids{"output_ids"}, meta_info{"meta_info"}, prompt_token_ids{"prompt_token_ids"},
      index{"index"};
  Key id{"id"}, finish_reason{"finish_reason"}, prompt_tokens{"prompt_tokens"}, completion_tokens{"completion_tokens"};
  Key cached_tokens{"cached_tokens"}, num_retractions{"num_retractions"}, e2e_latency{"e2e_latency"};
  Key type{"type"}, length{"length"}, stop{"stop"}, abort{"abort"}, matched{"matched"}, message{"message"};
  Key input_token_logprobs{"input_token_logprobs"}, output_token_logprobs{"output_token_logprobs"};
  Key input_top_logprobs{"input_top_logprobs"}, output_top_logprobs{"output_top_logprobs"};
  Key input_token_ids_logprobs{"input_token_ids_logprobs"}, output_token_ids_logprobs{"output_token_ids_logprobs"};
};

const Keys& keys() {
  static const Keys keys;
  return keys;
}

void put(nb::dict& dict, const Key& key, nb::handle value) {
  if (PyDict_SetItem(dict.ptr(), key.get(), value.ptr()) != 0) throw nb::python_error();
}
void put(nb::dict& dict, const Key& key, int64_t value) { put(dict, key, nb::int_(value)); }

nb::object reason_of(const std::optional<FinishReason>& reason) {
  if (!reason) return nb::none();
  nb::dict dict;
  switch (reason->type) {
    case FinishReason::Type::kLength:
      put(dict, keys().type, nb::handle(keys().length.get()));
      put(dict, keys().length, reason->length);
      break;
    case FinishReason::Type::kStop:
      put(dict, keys().type, nb::handle(keys().stop.get()));
      if (const auto* id = std::get_if<int64_t>(&reason->matched)) put(dict, keys().matched, *id);
      if (const auto* text = std::get_if<std::string>(&reason->matched)) put(dict, keys().matched, text_of(*text));
      if (std::holds_alternative<std::monostate>(reason->matched)) put(dict, keys().matched, nb::none());
      break;
    case FinishReason::Type::kAbort:
      put(dict, keys().type, nb::handle(keys().abort.get()));
      put(dict, keys().message, text_of(reason->message));
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

// A dict of the keys that every meta_info has: a copy of it takes them without growing. Lives as long as the process.
PyObject* empty_meta() {
  static PyObject* const meta = [] {
    nb::dict dict;
    for (const Key* key : {&keys().id, &keys().finish_reason, &keys().prompt_tokens, &keys().completion_tokens,
                           &keys().cached_tokens, &keys().num_retractions, &keys().e2e_latency}) {
      put(dict, *key, nb::none());
    }
    return dict.release().ptr();
  }();
  return meta;
}

nb::dict meta_of(const MetaInfo& info, bool with_logprobs) {
  nb::dict meta = nb::steal<nb::dict>(PyDict_Copy(empty_meta()));
  if (!meta.is_valid()) throw nb::python_error();
  put(meta, keys().id, text_of(info.id));
  put(meta, keys().finish_reason, reason_of(info.finish_reason));
  put(meta, keys().prompt_tokens, info.prompt_tokens);
  put(meta, keys().completion_tokens, info.completion_tokens);
  put(meta, keys().cached_tokens, info.cached_tokens);
  put(meta, keys().num_retractions, info.num_retractions);
  put(meta, keys().e2e_latency, nb::float_(info.e2e_latency));
  if (!with_logprobs) return meta;
  put(meta, keys().input_token_logprobs, logprobs_of(info.input_token_logprobs));
  put(meta, keys().output_token_logprobs, logprobs_of(info.output_token_logprobs));
  if (!info.input_top_logprobs.empty()) put(meta, keys().input_top_logprobs, logprobs_of(info.input_top_logprobs));
  if (!info.output_top_logprobs.empty()) put(meta, keys().output_top_logprobs, logprobs_of(info.output_top_logprobs));
  if (!info.input_token_ids_logprobs.empty()) {
    put(meta, keys().input_token_ids_logprobs, logprobs_of(info.input_token_ids_logprobs));
  }
  if (!info.output_token_ids_logprobs.empty()) {
    put(meta, keys().output_token_ids_logprobs, logprobs_of(info.output_token_ids_logprobs));
  }
  return meta;
}

}  // namespace

nb::dict to_dict(const Output& output, bool with_index, bool with_logprobs) {
  nb::dict dict;
  put(dict, keys().text, text_of(output.text));
  put(dict, keys().output_ids, ids_of(output.output_ids));
  put(dict, keys().meta_info, meta_of(output.meta_info, with_logprobs));
  if (output.prompt_token_ids) put(dict, keys().prompt_token_ids, ids_of(*output.prompt_token_ids));
  if (with_index) put(dict, keys().index, output.index);
  return dict;
}

}  // namespace tokenmill::python
