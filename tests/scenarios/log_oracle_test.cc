// The seed's eight rounds at page_size 1, without mixed chunks, against a toy device: every line, count for count.
#include <gtest/gtest.h>

#include <fstream>
#include <regex>

#include "scenarios/shadow_device.h"
#include "sched/scheduler.h"

namespace tokenmill::testing {
namespace {

constexpr int32_t kVocab = 1000, kBlocks = 1 << 17;

class Rounds {
 public:
  Rounds() : device_(kBlocks, 1, kVocab) {
    SchedulerOptions options;
    options.page_size = 1;
    options.num_blocks = kBlocks;
    options.context_length = 4096;
    options.enable_mixed_chunk = false;
    options.chunked_prefill_size = 8192;
    options.log_info = [this](const std::string& line) { lines.push_back(line); };
    scheduler_ = std::make_unique<Scheduler>(options);
  }

  void submit(const std::vector<std::vector<int32_t>>& prompts) {
    std::vector<SequenceSpec> specs;
    for (const auto& prompt : prompts) {
      SequenceSpec spec;
      spec.id = ++id_;
      spec.group = spec.id;
      spec.prompt = std::make_shared<std::vector<int32_t>>(prompt);
      spec.seed = id_;
      specs.push_back(spec);
    }
    scheduler_->add(std::move(specs));
  }
  void step() {
    const Batch* batch = scheduler_->schedule();
    ASSERT_NE(batch, nullptr);
    scheduler_->commit(device_.run(*batch));
    if (batch->step % 16 == 0) scheduler_->check_integrity();
    for (const SequenceEvent& event : scheduler_->take_events()) {
      if (event.finish) {
        EXPECT_EQ(event.completion_tokens, 128);
      }
    }
  }
  void finish() {
    while (scheduler_->has_work()) step();
  }

  std::vector<std::string> lines;

 private:
  ShadowDevice device_;
  std::unique_ptr<Scheduler> scheduler_;
  uint64_t id_ = 0;
};

TEST(LogOracle, EightRounds) {
  const std::vector<int32_t> a = {1, 10, 11, 12, 13, 14}, b = {1, 2, 20, 21, 22, 23, 24, 25};
  const std::vector<int32_t> c = {1, 2, 30, 31, 32, 33}, d = {1, 2, 40, 41, 42, 43};
  Rounds rounds;
  rounds.submit({a});
  rounds.step();
  rounds.submit({b, c, d});
  rounds.finish();
  for (const auto& prompt : {a, c, d}) {
    rounds.submit({prompt});
    rounds.finish();
  }
  rounds.submit({a});
  rounds.step();
  rounds.submit({c, d});
  rounds.finish();
  for (const auto& prompt : {a, c, d}) {
    rounds.submit({prompt});
    rounds.finish();
  }

  std::ifstream file(std::string(TOKENMILL_TEST_DATA) + "/scenarios/log_oracle.txt");
  ASSERT_TRUE(file.good());
  std::vector<std::string> expected;
  for (std::string line; std::getline(file, line);) {
    if (!line.empty() && line[0] != '#') expected.push_back(line);
  }
  ASSERT_EQ(expected.size(), 35u);
  const std::regex throughput("gen throughput \\(token/s\\): [0-9]+\\.[0-9][0-9],");
  ASSERT_EQ(rounds.lines.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    std::string line = std::regex_replace(rounds.lines[i], throughput, "gen throughput (token/s): *,");
    EXPECT_EQ(line, expected[i]) << "line " << i;
  }
}

}  // namespace
}  // namespace tokenmill::testing
