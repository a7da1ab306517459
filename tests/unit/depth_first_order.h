// The order of dfs-weight as a plain function, to compare RadixCache::visit_watches with.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace tokenmill::testing {

// Depth first through the tree, of siblings the one with most sequences below it first (then the smaller number); what
// stands at a node itself follows what stands below it.
//   parents[n]    the node above node n; -1: n is a root
//   places[i]     the node where sequence i stands; -1: none, these come last. In order of arrival.
// Returns the sequences in their order.
inline std::vector<int32_t> depth_first_order(std::span<const int32_t> parents, std::span<const int32_t> places) {
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
    std::sort(nodes.begin(), nodes.end(), [&](int32_t a, int32_t b) {
      return std::pair(-branches[a].weight, a) < std::pair(-branches[b].weight, b);
    });
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

}  // namespace tokenmill::testing
