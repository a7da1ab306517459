// The random simulation: 100,000 steps, or TOKENMILL_SIM_STEPS from seed TOKENMILL_SIM_SEED.
#include "scenarios/simulation.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <iostream>

namespace tokenmill::testing {
namespace {

int64_t environment(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text ? std::atoll(text) : otherwise;
}

TEST(Simulation, NoViolation) {
  const int64_t steps = environment("TOKENMILL_SIM_STEPS", 100000);
  const auto seed = static_cast<uint64_t>(environment("TOKENMILL_SIM_SEED", 1));
  SimulationCounts counts;
  ASSERT_NO_THROW(counts = simulate(seed, steps, /*check_integrity=*/true));
  std::cout << "steps " << counts.steps << ", finished " << counts.finished << ", aborted " << counts.aborted
            << ", too large " << counts.too_large << ", failed steps " << counts.failed_steps << ", retractions "
            << counts.retractions << ", preemptions " << counts.preemptions << ", evicted blocks " << counts.evictions
            << ", copies " << counts.copies << ", cached tokens " << counts.cached_tokens << ", mixed steps "
            << counts.mixed_steps << ", timeouts " << counts.timeouts << ", pins " << counts.pins << " (refused "
            << counts.pins_refused << ")\n";
  if (steps < 20000) return;
  // The simulation is only worth as much as what happens in it.
  EXPECT_GT(counts.finished, steps / 100);
  for (int64_t count :
       {counts.aborted, counts.too_large, counts.failed_steps, counts.retractions, counts.preemptions, counts.evictions,
        counts.copies, counts.cached_tokens, counts.mixed_steps, counts.timeouts, counts.pins}) {
    EXPECT_GT(count, 20);
  }
}

}  // namespace
}  // namespace tokenmill::testing
