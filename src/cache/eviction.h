// Which leaf of the radix tree goes first when blocks run out: a pure function of a node's history.
#pragma once

#include <cstdint>
#include <utility>

namespace tokenmill {

enum class EvictionPolicy {
  kLru,   // least recently used first
  kLfu,   // fewest matches first, then least recently used
  kFifo,  // what entered the tree first
};

struct NodeHistory {
  uint64_t created = 0;      // when it entered the tree, on the cache's own clock
  uint64_t last_access = 0;  // when it was last matched or given back
  uint64_t hits = 0;         // matches that went through it
};

// Smaller goes first.
inline std::pair<uint64_t, uint64_t> eviction_key(EvictionPolicy policy, const NodeHistory& history) {
  switch (policy) {
    case EvictionPolicy::kLfu:
      return {history.hits, history.last_access};
    case EvictionPolicy::kFifo:
      return {history.created, history.last_access};
    case EvictionPolicy::kLru:
      break;
  }
  return {history.last_access, 0};
}

}  // namespace tokenmill
