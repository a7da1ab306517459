#include "sched/policy.h"

#include <algorithm>
#include <utility>

namespace tokenmill {
namespace {

// splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

}  // namespace

std::optional<SchedulePolicy> find_policy(std::string_view name) {
  static constexpr std::pair<std::string_view, SchedulePolicy> kPolicies[] = {
      {"lpm", SchedulePolicy::kLpm}, {"fcfs", SchedulePolicy::kFcfs},     {"dfs-weight", SchedulePolicy::kDfsWeight},
      {"lof", SchedulePolicy::kLof}, {"random", SchedulePolicy::kRandom}, {"priority", SchedulePolicy::kPriority}};
  for (const auto& [known, policy] : kPolicies) {
    if (known == name) return policy;
  }
  return std::nullopt;
}

int64_t waiting_rank(SchedulePolicy policy, const WaitingFacts& facts, uint64_t seed) {
  switch (policy) {
    case SchedulePolicy::kLpm:
      return -facts.matched;
    case SchedulePolicy::kLof:
      return -facts.max_new_tokens;
    case SchedulePolicy::kPriority:
      // -INT64_MIN does not exist; ~ keeps the order.
      return ~facts.priority;
    case SchedulePolicy::kRandom:
      return static_cast<int64_t>(mix(seed ^ mix(facts.id)) >> 1);
    case SchedulePolicy::kDfsWeight:
    case SchedulePolicy::kFcfs:
      break;
  }
  return 0;
}

bool is_due(SchedulePolicy policy, uint64_t arrival, uint64_t num_left, uint64_t overtake_max) {
  return policy != SchedulePolicy::kPriority && num_left >= arrival + overtake_max;
}

}  // namespace tokenmill
