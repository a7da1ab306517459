// One edge of the radix tree: some tokens and the blocks that hold their K/V.
//
//   root ──[t0 … t63 | b7 b2]──┬──[t64 … t95 | b9]
//                              └──[t64' … t70' | b4]     a partly filled block: always a leaf
//
// Edges begin at multiples of page_size; only a leaf's last block may be partly filled. Siblings may share fewer than
// page_size leading tokens; they are sorted by their first block's tokens, so the sibling with the longest common
// prefix is always next to a query's place in that order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <vector>

#include "cache/eviction.h"

namespace tokenmill {

struct PrefixWatch;
struct RadixNode;

using TokenSpan = std::span<const int32_t>;

inline int64_t common_prefix(TokenSpan a, TokenSpan b) {
  size_t n = std::min(a.size(), b.size());
  return std::mismatch(a.begin(), a.begin() + n, b.begin()).first - a.begin();
}

// Lexicographic order of the first block's tokens.
struct FirstBlockLess {
  using is_transparent = void;
  bool operator()(const RadixNode* a, const RadixNode* b) const;
  bool operator()(const RadixNode* a, TokenSpan b) const;
  bool operator()(TokenSpan a, const RadixNode* b) const;
};

struct RadixNode {
  uint64_t id = 0;
  int32_t page_size = 1;
  RadixNode* parent = nullptr;
  int64_t end = 0;  // tokens from the root to the end of this edge
  std::vector<int32_t> tokens;
  std::vector<int32_t> blocks;  // ceil(tokens / page_size)
  int32_t locks = 0;            // leases whose path goes through this node
  int32_t pins = 0;             // of these, pinned ones
  NodeHistory history;
  uint64_t pending_step = 0;  // the step that writes these blocks; 0: committed
  // The last block of a running sequence: rows past tokens.size() belong to that sequence, which goes on writing them.
  bool live_tail = false;
  bool evictable = false;  // is in RadixCache's eviction order
  // Of layers with a window: the block of each of `blocks`, -1 where it was given up; empty: no such group.
  std::vector<int32_t> window_blocks;
  int64_t window_held = 0;        // of window_blocks, those that are there
  int64_t window_idle = 0;        // of these, what no lease holds and can be evicted
  size_t window_front = 0;        // none is there before this one
  NodeHistory window_history;     // of matches that ended at most a window further
  bool window_evictable = false;  // is in RadixCache's order of window eviction
  std::set<RadixNode*, FirstBlockLess> children;
  std::map<int32_t, PrefixWatch*> watches;  // waiting sequences that hang here, by their next token (-1: at their end)

  int64_t begin() const { return end - static_cast<int64_t>(tokens.size()); }
  TokenSpan first_block() const { return TokenSpan(tokens).first(std::min<size_t>(tokens.size(), page_size)); }
  bool is_root() const { return parent == nullptr; }
};

inline bool FirstBlockLess::operator()(const RadixNode* a, const RadixNode* b) const {
  return (*this)(a, b->first_block());
}
inline bool FirstBlockLess::operator()(const RadixNode* a, TokenSpan b) const {
  TokenSpan key = a->first_block();
  return std::lexicographical_compare(key.begin(), key.end(), b.begin(), b.end());
}
inline bool FirstBlockLess::operator()(TokenSpan a, const RadixNode* b) const {
  TokenSpan key = b->first_block();
  return std::lexicographical_compare(a.begin(), a.end(), key.begin(), key.end());
}

}  // namespace tokenmill
