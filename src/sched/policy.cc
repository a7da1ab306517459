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

std::vector<int32_t> depth_first_order(std::span<const int32_t> parents, std::span<const int32_t> places) {
  struct Branch {
    int64_t weight = 0;
    std::vector<int32_t> children, own;
  };
  std::vector<Branch> branches(parents.size());
  std::vector<int32_t> roots, order;
  std::vector<int32_t> nowhere;
  for (size_t i = 0; i < places.size(); ++i) {
    if (places[i] < 0) {
      nowhere.push_back(static_cast<int32_t>(i));
      continue;
    }
    branches[places[i]].own.push_back(static_cast<int32_t>(i));
    for (int32_t node = places[i]; node >= 0; node = parents[node]) {
      if (branches[node].weight++ > 0) continue;
      (parents[node] >= 0 ? branches[parents[node]].children : roots).push_back(node);
    }
  }
  order.reserve(places.size());
  struct Open {
    int32_t node;
    bool expanded;
  };
  std::vector<Open> stack;
  const auto push_sorted = [&](std::vector<int32_t>& nodes) {
    std::stable_sort(nodes.begin(), nodes.end(),
                     [&](int32_t a, int32_t b) { return branches[a].weight > branches[b].weight; });
    for (auto it = nodes.rbegin(); it != nodes.rend(); ++it) stack.push_back({*it, false});
  };
  push_sorted(roots);
  while (!stack.empty()) {
    Branch& branch = branches[stack.back().node];
    if (!stack.back().expanded) {
      stack.back().expanded = true;
      push_sorted(branch.children);
      continue;
    }
    stack.pop_back();
    order.insert(order.end(), branch.own.begin(), branch.own.end());
  }
  order.insert(order.end(), nowhere.begin(), nowhere.end());
  return order;
}

}  // namespace tokenmill
