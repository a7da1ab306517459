// The random lives of simulation_test with a CUDA device underneath: each step of each world also runs on the device
// over its own KV memory, block copies and all, and must read back the tokens that the toy device reads.
//
// TOKENMILL_SIM_CUDA_RUNS worlds (200) of 60 steps each, from seed TOKENMILL_SIM_SEED (1).
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>

#include "ops/backend_registry.h"
#include "runner/model_runner.h"
#include "scenarios/shadow_model.h"
#include "scenarios/simulation.h"

namespace tokenmill::testing {
namespace {

int64_t environment(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text ? std::atoll(text) : otherwise;
}

// The shadow model's hidden state is the hash of the prefix that it read back, 16 bits a column.
SimulationOptions::Witness make_witness(const SchedulerOptions& world) {
  RunnerOptions options{.page_size = world.page_size, .num_blocks = world.num_blocks};
  options.max_tokens_per_step = int64_t{world.num_blocks} * world.page_size + world.max_running_requests;
  options.max_rows = world.max_running_requests;
  const auto runner = std::make_shared<ModelRunner>(make_backend("cuda", CpuOptions{}), make_shadow_model({}), options);
  return [runner](const Batch& batch, const ShadowDevice& toy) {
    const ModelRunner::InFlight step = runner->forward(batch);
    std::vector<int32_t> last;
    for (const BatchRow& row : batch.rows) last.push_back(row.token_begin + row.q_len - 1);
    const std::vector<float> hidden = runner->hidden_states(step, last);
    for (size_t row = 0; row < batch.rows.size(); ++row) {
      uint64_t hash = 0;
      for (size_t digit = 0; digit < 4; ++digit)
        hash |= static_cast<uint64_t>(hidden.at(4 * row + digit)) << 16 * digit;
      if (hash != toy.prefix_hash(batch, batch.rows[row])) {
        throw Violation("step " + std::to_string(batch.step) + ", row " + std::to_string(row) +
                        ": the device read other tokens");
      }
    }
  };
}

TEST(SimulationCuda, TheDeviceHoldsTheTokens) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "not run: no CUDA device";
  const int64_t runs = environment("TOKENMILL_SIM_CUDA_RUNS", 200);
  const auto first_seed = static_cast<uint64_t>(environment("TOKENMILL_SIM_SEED", 1));
  SimulationCounts counts;
  for (uint64_t seed = first_seed; seed < first_seed + static_cast<uint64_t>(runs); ++seed) {
    SimulationOptions options;
    options.seed = seed;
    options.steps = 60;
    options.make_witness = make_witness;
    try {
      counts.add(Simulation(options).run());
    } catch (const std::exception& error) {
      FAIL() << "seed " << seed << ": " << error.what();
    }
  }
  std::printf("[ device   ] %lld worlds, %lld steps, %lld copies, %lld retractions, %lld failed steps\n",
              static_cast<long long>(runs), static_cast<long long>(counts.steps), static_cast<long long>(counts.copies),
              static_cast<long long>(counts.retractions), static_cast<long long>(counts.failed_steps));
  if (runs < 100) return;
  EXPECT_GT(counts.copies, 20);
  EXPECT_GT(counts.retractions, 20);
  EXPECT_GT(counts.failed_steps, 20);
}

}  // namespace
}  // namespace tokenmill::testing
