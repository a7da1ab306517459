// The one table of sampling parameters: flags, JSON keys and the bindings are made from it.
#include <array>
#include <deque>

#include "engine/option_assign.h"
#include "tokenmill/error.h"
#include "tokenmill/sampling_params.h"

namespace tokenmill {
namespace {

template <class T>
struct MemberType;
template <class T>
struct MemberType<T SamplingParams::*> {
  using Type = T;
};

// A parameter's name as text, so that a row is one line and its functions know the name.
template <size_t N>
struct Name {
  char text[N];
  constexpr Name(const char (&from)[N]) {
    for (size_t i = 0; i < N; ++i) text[i] = from[i];
  }
};

template <auto Member, Name FieldName>
SamplingParamsField row(std::string_view help) {
  using T = typename MemberType<decltype(Member)>::Type;
  SamplingParamsField field;
  field.name = FieldName.text;
  field.type = kOptionTypeName<T>;
  field.help = help;
  field.set = [](SamplingParams& params, const OptionValue& value) {
    assign_option(FieldName.text, value, params.*Member);
  };
  field.get = [](const SamplingParams& params) { return option_of(params.*Member); };
  return field;
}

#define FIELD(member) row<&SamplingParams::member, #member>

std::vector<SamplingParamsField> make_table() {
  return {
      FIELD(max_new_tokens)("tokens to generate, at least 0; None: to the context's end; 0: prefill only"),
      FIELD(min_new_tokens)("no end of text before that many tokens; in [0, max_new_tokens]"),
      FIELD(temperature)("finite and at least 0; 0 is greedy"),
      FIELD(top_p)("keep the likeliest tokens up to this probability; in (0, 1]"),
      FIELD(top_k)("keep the k likeliest tokens; -1: all"),
      FIELD(min_p)("drop tokens below this share of the likeliest; in [0, 1]"),
      FIELD(frequency_penalty)("in [-2, 2], for each time a token is in the output"),
      FIELD(presence_penalty)("in [-2, 2], once for a token of the output"),
      FIELD(repetition_penalty)("in (0, 2], for tokens of prompt and output"),
      FIELD(stop)("end before this text; at most 32"),
      FIELD(stop_token_ids)("end at these tokens"),
      FIELD(stop_regex)("end before a match; at most 32"),
      FIELD(ignore_eos)("go on after end-of-text and stop tokens"),
      FIELD(no_stop_trim)("keep the stop string or token in the text"),
      FIELD(skip_special_tokens)("leave special tokens out of the text"),
      FIELD(spaces_between_special_tokens)(
          "without effect, as with any fast tokenizer: its decoder has no such choice"),
      FIELD(n)("samples a prompt, in [1, 4096]"),
      FIELD(json_schema)("constrain the output to a JSON schema"),
      FIELD(regex)("constrain the output to a regular expression"),
      FIELD(ebnf)("constrain the output to a grammar"),
      FIELD(structural_tag)("constrain parts of the output"),
      FIELD(logit_bias)("added to the logits of these token ids, such as {42: -100}"),
      FIELD(bad_words)("never generate these"),
      FIELD(allowed_token_ids)("generate these tokens only"),
      FIELD(sampling_seed)("the same seed gives the same tokens (also: seed)"),
      FIELD(stream_interval)("tokens a streamed chunk; None: the engine's"),
  };
}

#undef FIELD

struct Table {
  std::vector<SamplingParamsField> fields = make_table();
  std::deque<std::string> defaults;  // owns the default texts
  std::vector<std::string_view> names;

  Table() {
    const SamplingParams params;
    for (SamplingParamsField& field : fields) {
      field.default_text = defaults.emplace_back(python_repr(field.get(params)));
      names.push_back(field.name);
    }
  }
};

const Table& table() {
  static const Table table;
  return table;
}

}  // namespace

std::span<const SamplingParamsField> sampling_params_fields() { return table().fields; }

const SamplingParamsField& find_sampling_params_field(std::string_view name) {
  if (name == "seed") name = "sampling_seed";
  for (const SamplingParamsField& field : table().fields) {
    if (field.name == name) return field;
  }
  throw Error(ErrorKind::kType, "Unknown sampling parameter " + python_repr(name) + "; did you mean " +
                                    python_repr(nearest_name(name, table().names)) + "?");
}

}  // namespace tokenmill
