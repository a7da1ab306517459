// Sampling parameters: every rule at both of its ends, and the words of the messages.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <string>

#include "engine/sampling_params_json.h"
#include "engine/text_repr.h"
#include "tokenmill/error.h"
#include "tokenmill/sampling_params.h"
#include "util/expect_error.h"

namespace tokenmill {
namespace {

using Change = std::function<void(SamplingParams&)>;

void accepts(const Change& change) {
  SamplingParams params;
  change(params);
  EXPECT_NO_THROW(params.validate());
}

void rejects(const Change& change, const std::string& message) {
  SamplingParams params;
  change(params);
  EXPECT_LOAD_ERROR(params.validate(), ErrorKind::kValue, message);
}

TEST(SamplingParams, DefaultsAreValid) { EXPECT_NO_THROW(SamplingParams{}.validate()); }

TEST(SamplingParams, Ranges) {
  rejects([](auto& p) { p.top_p = 1.5; }, "top_p must be in (0, 1], got 1.5.");
  rejects([](auto& p) { p.top_p = 0; }, "top_p must be in (0, 1], got 0.0.");
  rejects([](auto& p) { p.top_p = std::nan(""); }, "top_p must be in (0, 1], got nan.");
  accepts([](auto& p) { p.top_p = 1e-9; });
  rejects([](auto& p) { p.top_k = 0; }, "top_k must be -1 (off) or at least 1, got 0.");
  rejects([](auto& p) { p.top_k = -2; }, "got -2.");
  accepts([](auto& p) { p.top_k = 1; });
  rejects([](auto& p) { p.min_p = -0.1; }, "min_p must be in [0, 1], got -0.1.");
  accepts([](auto& p) { p.min_p = 1; });
  rejects([](auto& p) { p.temperature = -1; }, "temperature must be finite and at least 0, got -1.0.");
  rejects([](auto& p) { p.temperature = std::numeric_limits<double>::infinity(); }, "got inf.");
  accepts([](auto& p) { p.temperature = 0; });
  rejects([](auto& p) { p.frequency_penalty = 2.5; }, "frequency_penalty must be in [-2, 2], got 2.5.");
  accepts([](auto& p) { p.frequency_penalty = -2; });
  rejects([](auto& p) { p.presence_penalty = -3; }, "presence_penalty must be in [-2, 2], got -3.0.");
  rejects([](auto& p) { p.repetition_penalty = 0; }, "repetition_penalty must be in (0, 2], got 0.0.");
  accepts([](auto& p) { p.repetition_penalty = 2; });
}

TEST(SamplingParams, Lengths) {
  rejects([](auto& p) { p.max_new_tokens = -1; }, "max_new_tokens must be at least 0, got -1.");
  accepts([](auto& p) { p.max_new_tokens = 0; });
  accepts([](auto& p) { p.max_new_tokens = std::nullopt; });
  rejects([](auto& p) { p.min_new_tokens = 200; }, "min_new_tokens must be in [0, max_new_tokens (128)], got 200.");
  accepts([](auto& p) { p.min_new_tokens = 128; });
  rejects([](auto& p) { p.min_new_tokens = -1; }, "min_new_tokens must be in [0");
  rejects([](auto& p) { p.n = 0; }, "n must be in [1, 4096], got 0.");
  rejects([](auto& p) { p.stream_interval = 0; }, "stream_interval must be at least 1, got 0.");
}

TEST(SamplingParams, Lists) {
  accepts([](auto& p) { p.stop.assign(32, "x"); });
  rejects([](auto& p) { p.stop.assign(33, "x"); }, "stop must be at most 32 strings, got 33.");
  rejects([](auto& p) { p.stop = {"a", ""}; }, "stop must be made of non-empty strings, got ''.");
  rejects([](auto& p) { p.stop_token_ids = {-1}; }, "stop_token_ids must be made of token ids of at least 0, got -1.");
  rejects([](auto& p) { p.logit_bias[3] = std::nan(""); }, "logit_bias must be made of finite numbers, got nan.");
  rejects([](auto& p) { p.allowed_token_ids.emplace(); }, "allowed_token_ids must be None or a list of at least one");
  rejects([](auto& p) { p.bad_words = {""}; }, "bad_words must be made of non-empty strings, got ''.");
  rejects([](auto& p) { p.regex = "a", p.ebnf = "b"; },
          "json_schema, regex, ebnf and structural_tag must be given at most once together, got 2 of them.");
}

TEST(SamplingParamsJson, ToJsonAndBack) {
  for (const SamplingParamsField& field : sampling_params_fields()) {
    SamplingParams params;
    const auto before = sampling_to_json(params);
    const std::string type(field.type), name(field.name);
    const bool was_true = before.at(name) == true;
    const std::string value = type.starts_with("str")         ? "\"x\""
                              : type.starts_with("list[str]") ? "[\"x\"]"
                              : type.starts_with("list[int]") ? "[3]"
                              : type.starts_with("dict")      ? "{\"3\": 0.5}"
                              : type.starts_with("bool")      ? (was_true ? "false" : "true")
                                                              : "3";
    set_sampling_param(params, name, value);
    const auto after = sampling_to_json(params);
    for (const auto& [key, now] : after.items()) EXPECT_EQ(now == before.at(key), key != name) << key;
    EXPECT_LOAD_ERROR(set_sampling_param(params, name, "[{}]"), ErrorKind::kType, name, "got");
    if (type.ends_with("None")) {
      set_sampling_param(params, name, "null");
      EXPECT_TRUE(sampling_to_json(params).at(name).is_null());
    }
  }
  SamplingParams params;
  EXPECT_LOAD_ERROR(set_sampling_param(params, "top_p", "0.5,"), ErrorKind::kValue, "not valid JSON");
  EXPECT_LOAD_ERROR(set_sampling_param(params, "logit_bias", "{\"x\": 1}"), ErrorKind::kType,
                    "logit_bias must be dict");
  EXPECT_TRUE(is_sampling_param("seed"));
  EXPECT_FALSE(is_sampling_param("topp"));
}

TEST(TextRepr, NumbersAsPythonWritesThem) {
  EXPECT_EQ(python_repr(1.0), "1.0");
  EXPECT_EQ(python_repr(0.88), "0.88");
  EXPECT_EQ(python_repr(1e-7), "1e-07");
  EXPECT_EQ(python_repr(1e16), "1e+16");
  EXPECT_EQ(python_repr(123456789.0), "123456789.0");
  EXPECT_EQ(python_repr(-0.0), "-0.0");
  EXPECT_EQ(python_repr("it's"), "\"it's\"");
  EXPECT_EQ(python_repr("a\nb\\'\""), "'a\\nb\\\\\\'\"'");
}

TEST(SamplingParamsTable, SetsAndGetsByName) {
  EXPECT_EQ(sampling_params_fields().size(), 26u);
  SamplingParams params;
  const auto set = [&](std::string_view name, const OptionValue& value) {
    find_sampling_params_field(name).set(params, value);
    return find_sampling_params_field(name).get(params);
  };
  for (const SamplingParamsField& field : sampling_params_fields()) {
    const OptionValue value = field.get(params);
    EXPECT_EQ(set(field.name, value), value) << field.name;
  }
  EXPECT_EQ(find_sampling_params_field("max_new_tokens").default_text, "128");
  EXPECT_EQ(find_sampling_params_field("stop").default_text, "None");
  EXPECT_EQ(std::get<double>(set("temperature", int64_t{1})), 1.0);  // a whole number serves as a float
  set("stop", std::string("END"));                                   // one is as good as a list of one
  EXPECT_EQ(params.stop, std::vector<std::string>{"END"});
  set("stop", {});
  EXPECT_TRUE(params.stop.empty());
  set("max_new_tokens", {});
  EXPECT_FALSE(params.max_new_tokens);
  set("seed", uint64_t{1} << 63);
  EXPECT_EQ(params.sampling_seed, uint64_t{1} << 63);
  set("logit_bias", std::map<int64_t, double>{{3, -1.5}});
  EXPECT_EQ(params.logit_bias.at(3), -1.5);
}

TEST(SamplingParamsTable, WrongTypesAndNames) {
  SamplingParams params;
  const auto set = [&](std::string_view name, const OptionValue& value) {
    find_sampling_params_field(name).set(params, value);
  };
  EXPECT_LOAD_ERROR(set("top_k", std::string("x")), ErrorKind::kType, "top_k must be int, got 'x'.");
  EXPECT_LOAD_ERROR(set("top_k", 1.5), ErrorKind::kType, "top_k must be int, got 1.5.");
  EXPECT_LOAD_ERROR(set("top_k", true), ErrorKind::kType, "top_k must be int, got True.");
  EXPECT_LOAD_ERROR(set("top_p", {}), ErrorKind::kType, "top_p must be float, got None.");
  EXPECT_LOAD_ERROR(set("n", uint64_t{1} << 63), ErrorKind::kValue, "n must be a 64-bit int, got 9223372036854775808.");
  EXPECT_LOAD_ERROR(set("seed", int64_t{-1}), ErrorKind::kValue, "sampling_seed must be at least 0, got -1.");
  EXPECT_LOAD_ERROR(set("stop", std::vector<int64_t>{1, 2}), ErrorKind::kType,
                    "stop must be list[str] | None, got [1, 2].");
  EXPECT_LOAD_ERROR(set("logit_bias", std::string("x")), ErrorKind::kType, "logit_bias must be dict[int, float]");
  EXPECT_LOAD_ERROR(set("tempreature", 1.0), ErrorKind::kType,
                    "Unknown sampling parameter 'tempreature'; did you mean 'temperature'?");
}

}  // namespace
}  // namespace tokenmill
