// The random simulation: 100,000 steps, or TOKENMILL_SIM_STEPS from seed TOKENMILL_SIM_SEED.
#include "scenarios/simulation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>

namespace tokenmill::testing {
namespace {

int64_t environment(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text ? std::atoll(text) : otherwise;
}

void expect_no_violation(bool overlap) {
  const int64_t steps = environment("TOKENMILL_SIM_STEPS", 100000);
  const auto seed = static_cast<uint64_t>(environment("TOKENMILL_SIM_SEED", 1));
  SimulationCounts counts;
  try {
    counts = simulate(seed, steps, /*check_integrity=*/true, overlap);
  } catch (const std::exception& error) {
    FAIL() << error.what();
  }
  std::cout << "steps " << counts.steps << ", finished " << counts.finished << ", aborted " << counts.aborted
            << ", too large " << counts.too_large << ", failed steps " << counts.failed_steps << ", retractions "
            << counts.retractions << ", preemptions " << counts.preemptions << ", evicted blocks " << counts.evictions
            << ", evicted window blocks " << counts.window_evictions << ", copies " << counts.copies
            << ", cached tokens " << counts.cached_tokens << ", mixed steps " << counts.mixed_steps << ", timeouts "
            << counts.timeouts << ", failed acquisitions " << counts.failed_acquires << ", pins " << counts.pins
            << " (refused " << counts.pins_refused << "), steps ahead " << counts.ahead_steps << ", wasted rows "
            << counts.wasted_rows << "\n";
  if (steps < 20000) return;
  // The simulation is only worth as much as what happens in it.
  EXPECT_GT(counts.finished, steps / 100);
  for (int64_t count : {counts.aborted, counts.too_large, counts.failed_steps, counts.retractions, counts.preemptions,
                        counts.evictions, counts.window_evictions, counts.copies, counts.cached_tokens,
                        counts.mixed_steps, counts.timeouts, counts.pins, counts.failed_acquires}) {
    EXPECT_GT(count, std::min<int64_t>(20, steps / 5000));
  }
  if (overlap) {
    EXPECT_GT(counts.ahead_steps, steps / 5);
    EXPECT_GT(counts.wasted_rows, steps / 500);
  } else {
    EXPECT_EQ(counts.ahead_steps + counts.wasted_rows, 0);
  }
}

TEST(Simulation, NoViolation) { expect_no_violation(/*overlap=*/false); }
TEST(Simulation, NoViolationWithOverlap) { expect_no_violation(/*overlap=*/true); }

// What once failed, or is worth keeping, cut down.
TEST(Scripts, All) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(TOKENMILL_TEST_SCRIPTS)) {
    std::ifstream file(entry.path());
    std::stringstream text;
    text << file.rdbuf();
    const Script script = script_from_text(text.str());
    EXPECT_EQ(replay(script), "") << entry.path();
    EXPECT_EQ(to_text(script_from_text(to_text(script))), to_text(script)) << entry.path();
    ++files;
  }
  EXPECT_GE(files, 1);
}

// A script does what the simulation did: the same commands, the same end.
TEST(Scripts, TheSimulationWritesThemDown) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SimulationOptions options;
    options.seed = seed;
    options.overlap = seed > 10;
    Simulation simulation(options);
    simulation.run();
    EXPECT_EQ(replay(simulation.script()), "") << seed;
    EXPECT_EQ(replay(script_from_text(to_text(simulation.script()))), "") << seed;
  }
}

}  // namespace
}  // namespace tokenmill::testing
