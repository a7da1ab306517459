// Counters, histograms, Prometheus text and the trace file.
#include "engine/metrics.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>
#include <sstream>

#include "scenarios/shadow_model.h"
#include "util/expect_error.h"

namespace tokenmill::testing {
namespace {

TEST(Histogram, BucketsHoldWhatIsAtMostTheirBound) {
  Histogram seconds(Histogram::Scale::kSeconds);
  for (const double value : {0.0, 1e-6, 1.0000001e-6, 0.5, 0.6, 1000.0}) seconds.add(value);
  EXPECT_EQ(seconds.count(), 6);
  EXPECT_EQ(seconds.bucket(0), 2);  // <= 1 us
  EXPECT_EQ(seconds.bucket(1), 1);  // <= 2 us
  EXPECT_EQ(seconds.bucket(Histogram::kBuckets - 1), 1);
  EXPECT_NEAR(seconds.sum(), 1001.1, 1e-3);
  Histogram sizes(Histogram::Scale::kSize);
  for (const double value : {1, 2, 3, 4, 5}) sizes.add(value);
  EXPECT_EQ(sizes.bucket(0), 1);
  EXPECT_EQ(sizes.bucket(1), 1);
  EXPECT_EQ(sizes.bucket(2), 2);
  EXPECT_EQ(sizes.bucket(3), 1);
  for (size_t i = 1; i < Histogram::kBuckets; ++i) {
    EXPECT_GT(seconds.bound(i), seconds.bound(i - 1));
    EXPECT_GT(sizes.bound(i), sizes.bound(i - 1));
  }
}

TEST(Histogram, QuantilesStayInTheirBucket) {
  Histogram histogram(Histogram::Scale::kSeconds);
  EXPECT_EQ(histogram.quantile(0.5), 0);
  histogram.add(0.003, 99);
  histogram.add(4);
  EXPECT_GT(histogram.quantile(0.5), 0.002);
  EXPECT_LE(histogram.quantile(0.5), 0.005);
  EXPECT_LE(histogram.quantile(0.99), 0.005);
  EXPECT_GT(histogram.quantile(0.999), 2);
  EXPECT_LE(histogram.quantile(1), 5);
}

std::vector<Request> requests(int count) {
  std::vector<Request> list;
  for (int i = 0; i < count; ++i) list.push_back(ids_request(random_ids(static_cast<uint64_t>(i), 40), 5));
  return list;
}

TEST(EngineMetrics, CountWhatHappened) {
  Engine engine = make_shadow_engine({.args = {.max_running_requests = 4, .page_size = 16}});
  engine.generate(requests(10));
  engine.generate(requests(10));
  engine.flush_cache();  // between two steps: what the last one measured is told
  const auto stats = engine.stats();
  EXPECT_EQ(stats.at("requests"), 20);
  EXPECT_EQ(stats.at("queue_time_seconds_count"), 20);
  EXPECT_EQ(stats.at("time_to_first_token_seconds_count"), 20);
  EXPECT_EQ(stats.at("inter_token_latency_seconds_count"), 20 * 4);
  EXPECT_EQ(stats.at("e2e_latency_seconds_count"), 20);
  EXPECT_EQ(stats.at("batch_size_count"), stats.at("steps"));
  EXPECT_EQ(stats.at("step_forward_seconds_count"), stats.at("steps"));
  EXPECT_EQ(stats.at("step_sample_seconds_count"), stats.at("steps"));
  EXPECT_LE(stats.at("batch_size_p99"), 4);
  // Each sequence's rows: one prefill (or more) and four decodes.
  EXPECT_GE(stats.at("batch_size_sum"), 20 * 5);
  EXPECT_EQ(stats.at("step_tokens_sum"), stats.at("prompt_tokens") - stats.at("cached_tokens") + 20 * 4);
  EXPECT_NEAR(stats.at("cache_hit_rate"), stats.at("cached_tokens") / 800, 1e-9);
  EXPECT_EQ(stats.at("cached_tokens"), 10 * 39);
  EXPECT_GE(stats.at("e2e_latency_seconds_sum"), stats.at("time_to_first_token_seconds_sum"));
}

TEST(EngineMetrics, PrometheusTextIsWellFormed) {
  ShadowEngineOptions options;
  options.args.served_model_name = "a \"model\"\\";
  Engine engine = make_shadow_engine(std::move(options));
  engine.generate(requests(5));
  engine.flush_cache();
  std::istringstream text(engine.prometheus_metrics());
  const std::regex comment(R"(# (HELP|TYPE) tokenmill_[a-z0-9_]+ .+)");
  const std::regex sample(R"re((tokenmill_[a-z0-9_]+)\{model_name="a \\"model\\"\\\\"(,le="([^"]+)")?\} (\S+))re");
  std::map<std::string, double> values;
  double bucket_before = 0;
  for (std::string line; std::getline(text, line);) {
    if (line[0] == '#') {
      EXPECT_TRUE(std::regex_match(line, comment)) << line;
      bucket_before = 0;
      continue;
    }
    std::smatch match;
    ASSERT_TRUE(std::regex_match(line, match, sample)) << line;
    const double value = std::stod(match[4]);
    if (match[2].matched) {
      EXPECT_GE(value, bucket_before) << line;
      bucket_before = value;
    }
    values[match[1].str() + match[3].str()] = value;
  }
  EXPECT_EQ(values.at("tokenmill_requests_total"), 5);
  EXPECT_EQ(values.at("tokenmill_running"), 0);
  EXPECT_EQ(values.at("tokenmill_time_to_first_token_seconds_count"), 5);
  EXPECT_EQ(values.at("tokenmill_time_to_first_token_seconds_bucket+Inf"), 5);
}

TEST(EngineTrace, IsJsonWithEveryStepAndRequest) {
  const TempFolder folder;
  const std::string path = folder.path() + "/trace.json";
  double steps = 0;
  {
    ShadowEngineOptions options;
    options.args.trace_path = path;
    options.args.max_running_requests = 3;
    options.args.max_total_tokens = 512;
    options.args.page_size = 16;
    Engine engine = make_shadow_engine(std::move(options));
    std::vector<Request> list = requests(8);
    list[2].rid = "quo\"ted";
    list.push_back(ids_request(random_ids(9, 600), 1));  // fits no pool
    engine.generate(list);
    engine.flush_cache();
    steps = engine.stats().at("steps");
  }
  std::ifstream file(path);
  const nlohmann::json trace = nlohmann::json::parse(file);
  std::map<std::string, int> counts;
  std::map<int64_t, int64_t> open;
  double last = 0;
  for (const nlohmann::json& event : trace) {
    const std::string phase = event.at("ph"), name = event.at("name");
    ++counts[phase + " " + name];
    if (phase == "X" && name == "step") {
      EXPECT_GE(event.at("ts"), last);
      last = event.at("ts");
    }
    if (phase == "b") ++open[event.at("id")];
    if (phase == "e") --open[event.at("id")];
  }
  EXPECT_EQ(counts["X step"], steps);
  EXPECT_EQ(counts["X forward"], steps);
  EXPECT_EQ(counts["b queued"], 9);
  EXPECT_EQ(counts["b decode"], 8);
  EXPECT_EQ(counts["b quo\"ted"], 1);
  EXPECT_EQ(counts["e quo\"ted"], 1);
  EXPECT_EQ(open.size(), 9u);
  for (const auto& [id, depth] : open) EXPECT_EQ(depth, 0) << id;
}

TEST(EngineTrace, APathThatCannotBeWrittenRaises) {
  ShadowEngineOptions options;
  options.args.trace_path = "/nowhere/at/all.json";
  EXPECT_LOAD_ERROR(make_shadow_engine(std::move(options)), ErrorKind::kValue, "trace_path must be a file");
}

}  // namespace
}  // namespace tokenmill::testing
