// run_batch from C++: callbacks, stopping, a window that bounds what is in flight, and an engine that dies.
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "scenarios/shadow_model.h"
#include "util/expect_error.h"

namespace tokenmill::testing {
namespace {

using nlohmann::json;

std::string batch_line(int64_t number, int64_t tokens) {
  const json line = {{"custom_id", number},
                     {"input_ids", random_ids(static_cast<uint64_t>(number), 10)},
                     {"sampling_params", {{"max_new_tokens", tokens}, {"temperature", 0}}}};
  return line.dump() + "\n";
}

std::string batch_lines(int64_t count, int64_t tokens) {
  std::string text;
  for (int64_t i = 0; i < count; ++i) text += batch_line(i, tokens);
  return text;
}

// custom_id -> output_ids; every id once.
std::map<int64_t, std::vector<int32_t>> results_of(const std::string& path) {
  std::map<int64_t, std::vector<int32_t>> results;
  std::istringstream in(read_file(path));
  for (std::string line; std::getline(in, line);) {
    const json parsed = json::parse(line);
    const bool fresh = results.emplace(parsed["custom_id"], parsed["output_ids"]).second;
    EXPECT_TRUE(fresh) << line;
  }
  return results;
}

void expect_all(const std::string& path, int64_t count, int64_t tokens) {
  const auto results = results_of(path);
  EXPECT_EQ(results.size(), static_cast<size_t>(count));
  for (const auto& [number, ids] : results) {
    EXPECT_EQ(ids, shadow_greedy(random_ids(static_cast<uint64_t>(number), 10), tokens)) << number;
  }
}

TEST(EngineBatch, WritesAndReports) {
  Engine engine = make_shadow_engine({});
  const TempFolder folder;
  const std::string input = folder.write("in.jsonl", batch_lines(30, 5) + "bad\n"), output = folder.file("out.jsonl");
  std::set<int64_t> seen;
  BatchOptions options;
  options.on_result = [&](const BatchItem& item) {
    EXPECT_TRUE(seen.insert(item.index).second);
    EXPECT_EQ(item.line, item.index + 1);
    EXPECT_EQ(item.error.empty(), item.index < 30);
    EXPECT_EQ(item.outputs->size(), item.index < 30 ? 1u : 0u);
    EXPECT_EQ(item.json.back(), '\n');
  };
  const BatchReport report = engine.run_batch(input, output, options);
  EXPECT_EQ(seen.size(), 31u);
  EXPECT_EQ(report.total, 31);
  EXPECT_EQ(report.done, 30);
  EXPECT_EQ(report.failed, 1);
  EXPECT_EQ(report.resumed, 0);
  EXPECT_EQ(report.prompt_tokens, 300);
  EXPECT_EQ(report.completion_tokens, 150);
  EXPECT_FALSE(report.stopped);
  EXPECT_EQ(report.error_path, folder.file("out.errors.jsonl"));
  expect_all(output, 30, 5);
  EXPECT_EQ(engine.run_batch(input, output).resumed, 30);
  expect_all(output, 30, 5);
}

TEST(EngineBatch, StopsAndResumes) {
  Engine engine = make_shadow_engine({.args = {.max_running_requests = 16}});  // few at a time, or all end at once
  const TempFolder folder;
  const std::string input = folder.write("in.jsonl", batch_lines(200, 20)), output = folder.file("out.jsonl");
  BatchOptions options;
  options.on_progress = [](const BatchProgress& progress) { return progress.done < 50; };
  const BatchReport first = engine.run_batch(input, output, options);
  EXPECT_TRUE(first.stopped);
  EXPECT_GE(first.done, 50);
  EXPECT_LT(first.done, 200);
  EXPECT_EQ(first.failed, 0);
  EXPECT_EQ(results_of(output).size(), static_cast<size_t>(first.done));
  const BatchReport second = engine.run_batch(input, output);
  EXPECT_EQ(second.resumed, first.done);
  EXPECT_EQ(second.done, 200 - first.done);
  expect_all(output, 200, 20);
}

TEST(EngineBatch, WhatACallbackThrowsComesOutAndNothingRunsOn) {
  Engine engine = make_shadow_engine({});
  const TempFolder folder;
  const std::string input = folder.write("in.jsonl", batch_lines(100, 2000)), output = folder.file("out.jsonl");
  BatchOptions options;
  options.on_progress = [calls = 0](const BatchProgress&) mutable -> bool {
    if (++calls == 3) throw std::runtime_error("enough");
    return true;
  };
  EXPECT_THROW(engine.run_batch(input, output, options), std::runtime_error);
  for (int i = 0; i < 1000 && engine.stats().at("running") + engine.stats().at("queue") > 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_EQ(engine.stats().at("running"), 0);
  EXPECT_EQ(engine.stats().at("finished"), 0);
}

TEST(EngineBatch, TheWindowBoundsWhatIsInFlight) {
  Engine engine = make_shadow_engine({});
  const TempFolder folder;
  const std::string input = folder.write("in.jsonl", batch_lines(100, 3)), output = folder.file("out.jsonl");
  double most = 0;
  BatchOptions options;
  options.window = 8;
  options.on_progress = [&](const BatchProgress&) {
    const auto stats = engine.stats();
    most = std::max(most, stats.at("requests") - stats.at("finished"));
    return true;
  };
  EXPECT_EQ(engine.run_batch(input, output, options).done, 100);
  EXPECT_LE(most, 8);
  expect_all(output, 100, 3);
}

TEST(EngineBatch, AnEngineThatDiesLeavesGoodResults) {
  const TempFolder folder;
  const std::string input = folder.write("in.jsonl", batch_lines(100, 10)), output = folder.file("out.jsonl");
  {
    ShadowEngineOptions options;
    options.args.max_running_requests = 8;
    options.model.on_forward = [steps = 0](const Batch&) mutable {
      if (++steps == 30) throw std::bad_alloc();
    };
    Engine engine = make_shadow_engine(options);
    EXPECT_LOAD_ERROR(engine.run_batch(input, output), ErrorKind::kRuntime, "bad_alloc");
    const size_t done = results_of(output).size();
    EXPECT_GT(done, 0u);
    EXPECT_LT(done, 100u);
    EXPECT_FALSE(std::filesystem::exists(folder.file("out.errors.jsonl")));
    EXPECT_LOAD_ERROR(engine.run_batch(input, output), ErrorKind::kRuntime, "bad_alloc");
  }
  EXPECT_EQ(make_shadow_engine({}).run_batch(input, output).failed, 0);
  expect_all(output, 100, 10);
}

TEST(EngineBatch, BadCalls) {
  Engine engine = make_shadow_engine({});
  const TempFolder folder;
  const std::string input = folder.write("in.jsonl", batch_lines(2, 2)), output = folder.file("out.jsonl");
  BatchOptions options;
  options.window = 0;
  EXPECT_LOAD_ERROR(engine.run_batch(input, output, options), ErrorKind::kValue, "window must be at least 1, got 0.");
  options = {};
  options.sampling_params.top_p = 2;
  EXPECT_LOAD_ERROR(engine.run_batch(input, output, options), ErrorKind::kValue, "top_p must be in (0, 1], got 2.0.");
  EXPECT_LOAD_ERROR(engine.run_batch(folder.file("none"), output), ErrorKind::kValue, "none", "No such file");
  bool refused = false;
  engine.generate(ids_request({1, 2}, 1));
  std::promise<void> told;
  engine.submit(ids_request({1, 2}, 1), [&](Output&&) {
    refused =
        static_cast<bool>(fails_with([&] { engine.run_batch(input, output); }, ErrorKind::kRuntime, {"on_output"}));
    told.set_value();
    return true;
  });
  told.get_future().wait();
  EXPECT_TRUE(refused);
  engine.shutdown();
  EXPECT_LOAD_ERROR(engine.run_batch(input, output), ErrorKind::kRuntime, "shut down");
}

TEST(EngineBatch, TwoRunsOfOneProcessOnOneOutput) {
  Engine engine = make_shadow_engine({});
  const TempFolder folder;
  const std::string input = folder.write("in.jsonl", batch_lines(20, 5)), output = folder.file("out.jsonl");
  BatchOptions options;
  bool tried = false;
  options.on_result = [&](const BatchItem&) {
    if (std::exchange(tried, true)) return;
    EXPECT_LOAD_ERROR(engine.run_batch(input, output), ErrorKind::kValue, output, "another run");
  };
  EXPECT_EQ(engine.run_batch(input, output, options).done, 20);
  EXPECT_TRUE(tried);
}

}  // namespace
}  // namespace tokenmill::testing
