// A simulation that catches nothing proves nothing. This binary is built once a mutation (cache/mutation.h), from its
// own copy of cache and sched; the simulation must find each, and from wrong answers alone where integrity checks are
// off.
#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>

#include "base/check.h"
#include "cache/mutation.h"
#include "scenarios/simulation.h"

namespace tokenmill::testing {
namespace {

static_assert(TOKENMILL_MUTATION != 0);

std::string violation(bool check_integrity) {
  try {
    simulate(/*first_seed=*/1, /*steps=*/100000, check_integrity, mutated(Mutation::kSlotOfThisStep));
  } catch (const Violation& error) {
    return error.what();
  } catch (const InvariantError& error) {
    return error.what();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

TEST(Mutation, IsCaughtByIntegrityOrAnswers) {
  std::string caught = violation(/*check_integrity=*/true);
  std::cout << caught << "\n";
  EXPECT_NE(caught, "");
  // The failure comes with a short script.
  EXPECT_NE(caught.find("\noptions page_size="), std::string::npos);
  EXPECT_LE(std::count(caught.begin(), caught.end(), '\n'), 30);
}

TEST(Mutation, IsCaughtWithoutIntegrityChecks) {
  std::string caught = violation(/*check_integrity=*/false);
  std::cout << caught << "\n";
  EXPECT_NE(caught, "");
}

}  // namespace
}  // namespace tokenmill::testing
