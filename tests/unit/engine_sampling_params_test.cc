// Sampling parameters: every rule at both of its ends, and the words of the messages.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

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

}  // namespace
}  // namespace tokenmill
