// The loop driven by hand, one step at a time: scheduler and cache agree after each, whatever happened in it.
#include <gtest/gtest.h>

#include <map>
#include <stdexcept>

#include "scenarios/shadow_model.h"
#include "util/expect_error.h"

namespace tokenmill::testing {
namespace {

// What the outputs of a call added up to.
struct Heard {
  std::map<int64_t, Output> ends;  // by index
  std::shared_ptr<Call> call = std::make_shared<Call>();

  Heard() {
    call->on_output = [this](Output&& output) {
      if (output.finished()) ends[output.index] = std::move(output);
      return true;
    };
  }
};

ShadowEngineOptions small_pool() {
  return {.model = {},
          .args = {.max_running_requests = 4,
                   .max_total_tokens = 256,
                   .chunked_prefill_size = 16,
                   .schedule_conservativeness = 0.1,
                   .page_size = 16},
          .tokenizer = false,
          .on_log = nullptr};
}

std::vector<Request> prompts(uint64_t count) {
  std::vector<Request> requests;
  for (uint64_t i = 0; i < count; ++i) {
    requests.push_back(ids_request(random_ids(i, 20 + static_cast<int64_t>(i * 13 % 40)), 60));
  }
  return requests;
}

void expect_greedy(const Request& request, const Output& output) {
  EXPECT_EQ(output.output_ids, shadow_greedy(*request.input_ids, static_cast<int64_t>(output.output_ids.size())));
}

// Steps until nothing is left to do, and checks that every block came back.
void run_to_the_end(EngineCore& core) {
  int64_t steps = 0;
  while (core.step()) {
    core.check_integrity();
    ASSERT_LT(++steps, 100000);
  }
  core.deliver();
  EXPECT_TRUE(core.flush_cache());
  core.check_integrity();
  while (core.step()) {
  }
  const auto stats = core.stats();
  EXPECT_EQ(stats.at("blocks_free"), stats.at("blocks_total"));
  EXPECT_EQ(stats.at("running") + stats.at("queue"), 0);
}

TEST(EngineSteps, RetractionsStepByStep) {
  const auto core = make_shadow_core(small_pool());
  const auto requests = prompts(12);
  Heard heard;
  core->submit(requests, heard.call, false);
  run_to_the_end(*core);
  EXPECT_GT(core->stats().at("retractions"), 0);
  ASSERT_EQ(heard.ends.size(), requests.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(heard.ends[static_cast<int64_t>(i)].output_ids.size(), 60u);
    expect_greedy(requests[i], heard.ends[static_cast<int64_t>(i)]);
  }
}

// An abort before each of the first steps in turn: while the prompt waits, between its pieces, and while it decodes.
TEST(EngineSteps, AnAbortAtEveryStep) {
  for (int at = 0; at < 40; ++at) {
    const auto core = make_shadow_core(small_pool());
    const auto requests = prompts(5);
    Heard heard;
    const auto ids = core->submit(requests, heard.call, false);
    for (int i = 0; i < at; ++i) core->step();
    core->abort(ids[1]);
    core->check_integrity();
    run_to_the_end(*core);
    ASSERT_EQ(heard.ends.size(), 5u);
    for (size_t i = 0; i < 5; ++i) {
      const Output& output = heard.ends[static_cast<int64_t>(i)];
      const bool aborted = output.meta_info.finish_reason->type == FinishReason::Type::kAbort;
      EXPECT_EQ(aborted, i == 1) << "request " << i << ", aborted at step " << at;
      expect_greedy(requests[i], output);
    }
  }
}

// A forward pass that fails at each of the first steps in turn ends that step's requests and no other.
TEST(EngineSteps, AFaultAtEveryStep) {
  for (int at = 0; at < 40; ++at) {
    ShadowEngineOptions options = small_pool();
    int pass = 0;
    options.model.on_forward = [&](const Batch&) {
      if (pass++ == at) throw std::runtime_error("device fell over");
    };
    const auto core = make_shadow_core(std::move(options));
    const auto requests = prompts(8);
    Heard heard;
    core->submit(requests, heard.call, false);
    run_to_the_end(*core);
    ASSERT_EQ(heard.ends.size(), 8u);
    int64_t aborted = 0;
    for (size_t i = 0; i < 8; ++i) {
      const Output& output = heard.ends[static_cast<int64_t>(i)];
      aborted += output.meta_info.finish_reason->type == FinishReason::Type::kAbort;
      expect_greedy(requests[i], output);
    }
    EXPECT_GE(aborted, 1);
    EXPECT_LE(aborted, 4);
  }
}

TEST(EngineSteps, AfterShutdownNothingSteps) {
  const auto core = make_shadow_core(small_pool());
  core->shutdown();
  EXPECT_THROW(core->check_integrity(), Error);
  EXPECT_THROW((void)core->step(), std::exception);
}

}  // namespace
}  // namespace tokenmill::testing
