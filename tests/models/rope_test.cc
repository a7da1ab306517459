// Frequencies of the scaling rules that the tiny checkpoints do not cover (those cover default, llama3 and yarn), and
// what every rule promises.
#include "nn/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "models/naive_backend.h"
#include "nn/kv_pool.h"
#include "nn/workspace.h"
#include "tokenmill/error.h"

namespace tokenmill {
namespace {

std::vector<float> at(const Rope& rope, int64_t position, int64_t dim) {
  std::vector<float> out(static_cast<size_t>(dim / 2));
  rope.inverse_frequencies_at(position, out);
  return out;
}

TEST(Rope, DefaultIsPowersOfTheta) {
  const Rope rope({.theta = 10000}, 8, 512);
  const std::vector<double> want = {1, 0.1, 0.01, 0.001};
  for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(rope.inverse_frequencies()[i] / want[i], 1, 1e-6);
  EXPECT_EQ(rope.attention_factor(), 1);
}

TEST(Rope, LinearDividesByTheFactor) {
  const Rope rope({.theta = 10000, .scaling = RopeScaling::kLinear, .factor = 4}, 8, 512);
  const std::vector<double> want = {0.25, 0.025, 0.0025, 0.00025};
  for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(rope.inverse_frequencies()[i] / want[i], 1, 1e-6);
}

// theta' = theta * (factor * length / original - (factor - 1)) ^ (dim / (dim - 2))
TEST(Rope, DynamicDependsOnThePositionOnly) {
  const Rope rope({.theta = 10000, .scaling = RopeScaling::kDynamic, .factor = 2, .original_max_position = 64}, 8, 512);
  const std::vector<float> base = at(rope, 0, 8);
  EXPECT_EQ(at(rope, 63, 8), base);
  EXPECT_NE(at(rope, 64, 8), base);
  const double theta = 10000 * std::pow(2 * 128.0 / 64 - 1, 8.0 / 6);  // position 127: a length of 128
  const std::vector<float> far = at(rope, 127, 8);
  for (size_t i = 0; i < far.size(); ++i) {
    EXPECT_NEAR(far[i] * std::pow(theta, 2.0 * static_cast<double>(i) / 8), 1, 1e-6) << i;
  }
}

// The table of a step that crosses the original length has each token's own frequencies.
TEST(Rope, DynamicTableMixesRows) {
  const Rope rope({.theta = 10000, .scaling = RopeScaling::kDynamic, .factor = 2, .original_max_position = 64}, 8, 512);
  NaiveBackend backend;
  KvPool kv(backend,
            {.num_layers = 1, .kv_heads = 1, .head_dim = 8, .page_size = 1, .num_blocks = 1, .dtype = DType::kF32});
  Workspace workspace(backend, 4096);
  Batch batch;
  batch.tokens = {0, 0, 0};
  batch.positions = {200, 10, 64};
  ForwardContext context{backend, kv, workspace, batch};
  const RopeTable table = rope.take_table(workspace, 3);
  rope.fill_table(context, table);
  for (size_t row = 0; row < batch.positions.size(); ++row) {
    const std::vector<float> own = at(rope, batch.positions[row], 8);
    for (size_t i = 0; i < own.size(); ++i) {
      const float angle = static_cast<float>(batch.positions[row]) * own[i];
      EXPECT_NEAR(table.cos.row<float>(static_cast<int64_t>(row))[i], std::cos(angle), 1e-6) << row << " " << i;
      EXPECT_NEAR(table.sin.row<float>(static_cast<int64_t>(row))[i], std::sin(angle), 1e-6) << row << " " << i;
    }
  }
}

TEST(Rope, YarnAttentionFactor) {
  RopeConfig config{.theta = 10000, .scaling = RopeScaling::kYarn, .factor = 40, .original_max_position = 64};
  EXPECT_FLOAT_EQ(Rope(config, 16, 512).attention_factor(), static_cast<float>(0.1 * std::log(40.0) + 1));
  config.mscale = 1.0, config.mscale_all_dim = 0.5;
  EXPECT_FLOAT_EQ(Rope(config, 16, 512).attention_factor(),
                  static_cast<float>((0.1 * std::log(40.0) + 1) / (0.05 * std::log(40.0) + 1)));
  config.attention_factor = 1.25;
  EXPECT_EQ(Rope(config, 16, 512).attention_factor(), 1.25f);
}

TEST(Rope, YarnTruncateRoundsTheRamp) {
  RopeConfig config{.theta = 10000, .scaling = RopeScaling::kYarn, .factor = 4, .original_max_position = 4096};
  const std::vector<float> rounded = at(Rope(config, 64, 16384), 0, 64);
  config.yarn_truncate = false;
  const std::vector<float> exact = at(Rope(config, 64, 16384), 0, 64);
  EXPECT_NE(rounded, exact);
  EXPECT_EQ(rounded.front(), exact.front());  // fast dimensions are kept, slow ones interpolated, either way
  EXPECT_EQ(rounded.back(), exact.back());
  EXPECT_FLOAT_EQ(rounded.back() * 4, at(Rope({.theta = 10000}, 64, 16384), 0, 64).back());
}

TEST(Rope, DivisorsOfGgufApply) {
  RopeConfig config{.theta = 10000};
  config.frequency_divisors = {1, 2, 4, 8};
  const Rope rope(config, 8, 512);
  EXPECT_NEAR(rope.inverse_frequencies()[3] * 8, 0.001, 1e-9);
  config.frequency_divisors = {1, 2};
  EXPECT_THROW(Rope(config, 8, 512), Error);
}

TEST(Rope, RejectsWhatMakesNoFrequencies) {
  EXPECT_THROW(Rope({.theta = 0}, 8, 512), Error);
  EXPECT_THROW(Rope({.theta = std::nan("")}, 8, 512), Error);
  EXPECT_THROW(Rope({.theta = 10000}, 7, 512), Error);
  EXPECT_THROW(Rope({.theta = 10000, .scaling = RopeScaling::kLinear, .factor = 0}, 8, 512), Error);
}

}  // namespace
}  // namespace tokenmill
