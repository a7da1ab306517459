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
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "cache/eviction.h"
#include "cache/ordered_chunks.h"

namespace tokenmill {

struct RadixNode;

using TokenSpan = std::span<const int32_t>;

inline int64_t common_prefix(TokenSpan a, TokenSpan b) {
  size_t n = std::min(a.size(), b.size());
  return std::mismatch(a.begin(), a.begin() + n, b.begin()).first - a.begin();
}

// The first four tokens, so that ordered sets of token lists seldom have to look at the lists themselves.
struct TokenKey {
  uint64_t high = 0, low = 0;

  TokenKey() = default;
  explicit TokenKey(TokenSpan tokens) {
    const auto at = [&](size_t i) { return i < tokens.size() ? uint64_t{static_cast<uint32_t>(tokens[i])} + 1 : 0; };
    high = at(0) << 32 | at(1);
    low = at(2) << 32 | at(3);
  }
  bool operator==(const TokenKey&) const = default;
  bool operator<(const TokenKey& other) const { return wide() < other.wide(); }
  unsigned __int128 wide() const { return static_cast<unsigned __int128>(high) << 64 | low; }
  // How many leading tokens are the same; 4: at least as many as both have, or 4.
  int64_t common(const TokenKey& other) const {
    if (high != other.high) return (high ^ other.high) >> 32 != 0 ? 0 : 1;
    if (low != other.low) return (low ^ other.low) >> 32 != 0 ? 2 : 3;
    return 4;
  }
};

// Lexicographic order, what has its key at hand by that first.
inline bool tokens_less(const TokenKey& a_key, TokenSpan a, const TokenKey& b_key, TokenSpan b) {
  if (a_key != b_key) return a_key < b_key;
  const size_t skip = std::min({size_t{4}, a.size(), b.size()});
  return std::lexicographical_compare(a.begin() + skip, a.end(), b.begin() + skip, b.end());
}

// A list of tokens to look for.
struct TokenQuery {
  explicit TokenQuery(TokenSpan list) : key(list), tokens(list) {}
  TokenKey key;
  TokenSpan tokens;
};

// A waiting sequence hung on the tree: `matched` follows every change of the tree without a new walk from the root.
// Owned by the waiting sequence; its address and its tokens must not change between watch() and unwatch().
struct PrefixWatch {
  TokenSpan tokens;       // at most this much may match
  int64_t matched = 0;    // longest common prefix with the tree, uncommitted parts included
  void* owner = nullptr;  // the caller's
  uint64_t order = 0;     // among watches of one node, for visit_watches: smaller first, then by id
  uint64_t id = 0;
  RadixNode* node = nullptr;  // the deepest node that is a whole prefix of tokens
  // What `matched` has grown by during the step `grown_in` is not computed before that step commits.
  uint64_t grown_in = 0;
  int64_t matched_before = 0;
  int64_t changed_index = -1;  // its place among the changed watches; -1: none

  TokenSpan rest() const;  // beyond `node`
};

// The children of a node, in lexicographic order of their first block.
struct ChildEntry {
  TokenKey key;
  RadixNode* node = nullptr;
};
struct ChildLess {
  bool operator()(const ChildEntry& a, const ChildEntry& b) const;
  bool operator()(const ChildEntry& a, const TokenQuery& b) const;
  bool operator()(const TokenQuery& a, const ChildEntry& b) const;
};

// The watches that hang at a node, in lexicographic order of what follows it. So those that match an edge best are next
// to its place in that order, and a change of the edge concerns a run of them around it.
struct WatchEntry {
  TokenKey key;
  PrefixWatch* watch = nullptr;
};
struct WatchLess {
  bool operator()(const WatchEntry& a, const WatchEntry& b) const;
  bool operator()(const WatchEntry& a, const TokenQuery& b) const;
  bool operator()(const TokenQuery& a, const WatchEntry& b) const;
};

// Who is below a node, for visit_watches.
struct WatchesBelow {
  struct Branch {
    int64_t weight = 0;
    uint64_t age = 0;  // RadixNode::branch
    RadixNode* node = nullptr;
    // Heaviest first, then the older.
    bool operator<(const Branch& other) const {
      return weight != other.weight ? weight > other.weight : age < other.age;
    }
  };
  struct Own {
    uint64_t order = 0, id = 0;
    PrefixWatch* watch = nullptr;
    bool operator<(const Own& other) const { return order != other.order ? order < other.order : id < other.id; }
  };
  int64_t count = 0;   // watches at the node or below it
  int64_t weight = 0;  // those that were there since there was none; so a branch is not left before it is empty
  OrderedChunks<Branch> branches;  // the children that anything waits below
  OrderedChunks<Own> own;          // what hangs at the node itself
};

struct RadixNode {
  uint64_t id = 0;
  uint64_t branch = 0;  // the id it began with: a node that was cut off above another takes that one's
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
  OrderedChunks<ChildEntry, ChildLess> children;
  OrderedChunks<WatchEntry, WatchLess> watches;
  std::unique_ptr<WatchesBelow> below;  // null: nothing waits here or below, or nobody asked

  int64_t begin() const { return end - static_cast<int64_t>(tokens.size()); }
  TokenSpan first_block() const { return TokenSpan(tokens).first(std::min<size_t>(tokens.size(), page_size)); }
  ChildEntry entry() { return {TokenKey(first_block()), this}; }
  bool is_root() const { return parent == nullptr; }
};

inline TokenSpan PrefixWatch::rest() const { return tokens.subspan(static_cast<size_t>(node->end)); }

inline bool ChildLess::operator()(const ChildEntry& a, const ChildEntry& b) const {
  if (a.key != b.key) return a.key < b.key;
  return tokens_less(a.key, a.node->first_block(), b.key, b.node->first_block());
}
inline bool ChildLess::operator()(const ChildEntry& a, const TokenQuery& b) const {
  return a.key != b.key ? a.key < b.key : tokens_less(a.key, a.node->first_block(), b.key, b.tokens);
}
inline bool ChildLess::operator()(const TokenQuery& a, const ChildEntry& b) const {
  return a.key != b.key ? a.key < b.key : tokens_less(a.key, a.tokens, b.key, b.node->first_block());
}

inline bool WatchLess::operator()(const WatchEntry& a, const WatchEntry& b) const {
  if (a.key != b.key) return a.key < b.key;
  const TokenSpan left = a.watch->rest(), right = b.watch->rest();
  if (tokens_less(a.key, left, b.key, right)) return true;
  return !tokens_less(b.key, right, a.key, left) && std::less<>()(a.watch, b.watch);
}
inline bool WatchLess::operator()(const WatchEntry& a, const TokenQuery& b) const {
  return a.key != b.key ? a.key < b.key : tokens_less(a.key, a.watch->rest(), b.key, b.tokens);
}
inline bool WatchLess::operator()(const TokenQuery& a, const WatchEntry& b) const {
  return a.key != b.key ? a.key < b.key : tokens_less(a.key, a.tokens, b.key, b.watch->rest());
}

}  // namespace tokenmill
