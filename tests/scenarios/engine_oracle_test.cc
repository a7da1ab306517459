// The log lines of the seed's eight rounds from the whole engine, count for count: real loop, runner, backend and
// sampler. log_oracle_test does the same with the scheduler alone.
#include <gtest/gtest.h>

#include <fstream>
#include <regex>

#include "scenarios/shadow_model.h"

namespace tokenmill::testing {
namespace {

class Rounds {
 public:
  explicit Rounds(std::function<void(const std::string&)> on_log)
      : core_(make_shadow_core({.model = {},
                                .args = {.max_total_tokens = 1 << 17,
                                         .chunked_prefill_size = 8192,
                                         .decode_log_interval = 40,
                                         .enable_mixed_chunk = false,
                                         .page_size = 1},
                                .tokenizer = false,
                                .on_log = std::move(on_log)})) {}

  // One group of arrivals.
  void submit(const std::vector<std::vector<int32_t>>& prompts, bool stream = false) {
    std::vector<Request> requests;
    for (const auto& prompt : prompts) {
      requests.push_back(ids_request(prompt, 128));
      requests.back().sampling_params.temperature = 0.8;
      requests.back().sampling_params.ignore_eos = true;
      requests.back().stream = stream;
    }
    auto call = std::make_shared<Call>();
    call->on_output = [](Output&& output) {
      if (output.finished()) {
        EXPECT_EQ(output.meta_info.completion_tokens, 128);
      }
      return true;
    };
    core_->submit(std::move(requests), std::move(call), false);
  }
  void step() { core_->step(); }
  void finish() {
    while (core_->step()) {
    }
    core_->deliver();
  }

 private:
  std::shared_ptr<EngineCore> core_;
};

TEST(EngineLogOracle, AllLinesOfTheEightRounds) {
  std::vector<std::string> lines;
  Rounds rounds([&](const std::string& line) {
    if (line.find(" batch. #") != std::string::npos)
      lines.push_back(line.substr(line.find(line.find("Prefill") != std::string::npos ? "Prefill" : "Decode")));
  });
  const std::vector<int32_t> a = {1, 10, 11, 12, 13, 14}, b = {1, 2, 20, 21, 22, 23, 24, 25};
  const std::vector<int32_t> c = {1, 2, 30, 31, 32, 33}, d = {1, 2, 40, 41, 42, 43};
  for (const auto& second : {std::vector{b, c, d}, std::vector{c, d}}) {
    rounds.submit({a});
    rounds.step();
    rounds.submit(second);
    rounds.finish();
    for (const auto& prompt : {a, c, d}) {
      rounds.submit({prompt}, /*stream=*/true);
      rounds.finish();
    }
  }

  std::ifstream file(std::string(TOKENMILL_TEST_DATA) + "/scenarios/log_oracle.txt");
  ASSERT_TRUE(file.good());
  std::vector<std::string> expected;
  for (std::string line; std::getline(file, line);) {
    if (!line.empty() && line[0] != '#') expected.push_back(line);
  }
  ASSERT_EQ(expected.size(), 35u);
  ASSERT_EQ(lines.size(), expected.size());
  const std::regex throughput("gen throughput \\(token/s\\): [0-9]+\\.[0-9][0-9],");
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(std::regex_replace(lines[i], throughput, "gen throughput (token/s): *,"), expected[i]) << "line " << i;
  }
}

}  // namespace
}  // namespace tokenmill::testing
