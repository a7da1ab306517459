// Which block holds which prefix: a radix tree of token ids over the block allocator, one root a namespace.
//
// A sequence holds a PrefixLease: its block table, and a lock on the path of the tree that its table begins with.
//
//   table   [ in the tree: shared, read-only, locked | its own, writable ......... ]
//           0                              tree_tokens                 blocks.size() * page_size
//
// Matches are exact to the token: whole blocks are shared, the matched rows of one partly matched block are to be
// copied into a block of the new owner (BlockCopy). What a step will write enters the tree at once, marked with that
// step: it can be neither matched nor evicted until commit(step), and leaves the tree with fail(step).
//
// Layers with a window have blocks of their own (RadixCacheOptions::window). A lease holds those of its last `window`
// tokens, and of what is being computed, only; what it leaves behind stays in the tree while there is room, or is free:
//
//   blocks         b0 b1 b2 b3 b4 b5 b6
//   window_blocks  -1 -1 -1 -1 w4 w5 w6     [trim_window() has passed b3]
//
// A match ends at the longest prefix whose last `window` tokens are still there (radix_window.cc).
//
// Rows of a block in the tree never change. The one block of the tree that is still written is a running sequence's
// last: its rows so far are in the tree (live_tail), later rows are that sequence's alone.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cache/block_allocator.h"
#include "cache/radix_node.h"

namespace tokenmill {

// What one sequence holds. Made by match() or default (nothing held); ended by finish() or abandon().
struct PrefixLease {
  struct Duplicate {  // the tree holds an equal block for this place of the table
    int32_t index = 0, tree_block = 0;
  };
  std::vector<int32_t> blocks;        // the block table
  int64_t tree_tokens = 0;            // the first tokens of the sequence that are in the tree and locked
  RadixNode* node = nullptr;          // the deepest locked node; null: nothing is locked
  RadixNode* copy_source = nullptr;   // locked until the copy has been made
  std::vector<Duplicate> duplicates;  // settled at commit
  // The table of the window group, as far as acquired: -1 where nothing is held. Empty without such a group.
  std::vector<int32_t> window_blocks;
  size_t window_begin = 0;   // trim_window() has given up everything before
  int32_t copy_window = -1;  // window block of copy_source, held as long

  int64_t window_held() const { return static_cast<int64_t>(window_blocks.size() - window_begin); }
};

// The matched rows of a partly shared block; num_rows 0: none.
struct PartialMatch {
  int32_t block = 0, num_rows = 0;
  int32_t window_block = -1;  // the same rows in the window group
};

struct RadixCacheOptions {
  int32_t page_size = 32;
  int32_t num_blocks = 0;
  bool enabled = true;  // false: nothing ever matches or enters, blocks only
  EvictionPolicy eviction = EvictionPolicy::kLru;
  // Tokens that layers with a window see, and their blocks, numbered by themselves; 0: there is no such group.
  int32_t window = 0, window_blocks = 0;
  bool weigh_watches = false;  // visit_watches() is wanted
};

class RadixCache {
 public:
  explicit RadixCache(const RadixCacheOptions& options);
  ~RadixCache();
  RadixCache(const RadixCache&) = delete;
  RadixCache& operator=(const RadixCache&) = delete;

  // --- a sequence's life -------------------------------------------------------------------------------------------
  // Leases the longest committed prefix of `tokens` (already cut to what may match) and reports rows to be copied.
  // The source of that copy stays locked until copy_done().
  PrefixLease match(const std::string& name, TokenSpan tokens, PartialMatch* partial);
  void copy_done(PrefixLease& lease);
  // Appends n blocks, evicting leaves in the order of the policy as needed; false: not possible, nothing has changed.
  bool acquire(int64_t n, std::vector<int32_t>& out);
  // Lengthens the window table to `end` blocks, evicting window blocks as needed; false: not possible, nothing has
  // changed.
  bool acquire_window(int64_t end, PrefixLease& lease);
  // Gives up the window blocks that no token from `kv_len` on needs; after the commit that made it kv_len tokens.
  void trim_window(PrefixLease& lease, int64_t kv_len);
  // The sequence's tokens up to `tokens.size()` will have been computed by `step`: they enter the tree, uncommitted.
  // Where the tree already holds an equal block it is noted in lease.duplicates.
  void enter(const std::string& name, PrefixLease& lease, TokenSpan tokens, uint64_t step);
  // After commit(step): the table switches to the tree's equal blocks, the sequence's own are freed.
  void settle(PrefixLease& lease);
  // The sequence is done: `tokens` (all that is computed) enter the tree, everything else it holds is freed.
  void finish(const std::string& name, PrefixLease& lease, TokenSpan tokens);
  // The sequence is done and nothing of it that is not yet in the tree is kept; its live tail leaves the tree too.
  void abandon(PrefixLease& lease);

  void commit(uint64_t step);
  // Call after every sequence of the step was abandoned.
  void fail(uint64_t step);

  // --- waiting sequences -------------------------------------------------------------------------------------------
  void watch(const std::string& name, PrefixWatch& watch);
  void unwatch(PrefixWatch& watch);
  // Of watch.matched, the tokens that no commit has confirmed yet.
  int64_t uncommitted_tokens(const PrefixWatch& watch) const;
  // Watches whose `matched` changed since the last call.
  std::vector<PrefixWatch*> take_changed_watches();
  // Where the match of a watch may end, uncommitted parts included: at `matched`, but for holes of the window group.
  int64_t reachable_tokens(const PrefixWatch& watch) const;
  // With weigh_watches: the watches depth first through the tree, of siblings the one first below which most have
  // gathered since nothing hung there (then the older); what hangs at a node itself after what hangs below it. Until
  // visit() returns false.
  void visit_watches(const std::function<bool(PrefixWatch&)>& visit) const;

  // --- figures -----------------------------------------------------------------------------------------------------
  bool enabled() const { return options_.enabled; }
  int32_t page_size() const { return options_.page_size; }
  int64_t free_blocks() const { return allocator_.free_blocks(); }
  int64_t total_blocks() const { return allocator_.total_blocks(); }
  int64_t cached_blocks() const { return tree_blocks_; }
  int64_t available_blocks() const { return free_blocks() + tree_blocks_ - locked_blocks_; }
  int64_t pinned_blocks() const { return pinned_blocks_; }
  int64_t locked_tokens() const { return locked_tokens_; }  // distinct tokens in the tree that leases hold
  int64_t evictions() const { return evictions_; }          // blocks
  int64_t num_nodes() const { return num_nodes_; }
  int32_t window() const { return options_.window; }
  int64_t window_free_blocks() const { return window_allocator_.free_blocks(); }
  int64_t window_total_blocks() const { return window_allocator_.total_blocks(); }
  int64_t window_cached_blocks() const { return window_cached_; }
  int64_t window_available_blocks() const { return window_free_blocks() + window_idle_; }
  int64_t window_pinned_blocks() const { return window_pinned_; }
  int64_t window_evictions() const { return window_evictions_; }  // blocks

  // Holds the longest committed prefix of `tokens` until unpin(), whoever runs; to the block where its end is shared
  // with a running sequence's tail. A pinned lease is one of check_integrity()'s leases.
  PrefixLease pin(const std::string& name, TokenSpan tokens);
  void unpin(PrefixLease& lease);
  // Frees every block of the tree that is not pinned; nothing else may be leased.
  void clear();
  // Throws InvariantError unless blocks, locks and counts add up, given every lease there is. O(tree).
  void check_integrity(std::span<const PrefixLease* const> leases) const;

 private:
  using EvictionEntry = std::tuple<std::pair<uint64_t, uint64_t>, uint64_t, RadixNode*>;  // (key, id, leaf)
  // Where a walk down the tree ends: `node` matched whole, then `rows` more tokens of `branch` (null: none).
  struct Place {
    RadixNode* node = nullptr;
    RadixNode* branch = nullptr;
    int64_t rows = 0;
  };
  Place descend(RadixNode* from, TokenSpan tokens, bool committed_only) const;
  RadixNode* exact_child(const RadixNode* node, TokenSpan rest) const;
  std::pair<RadixNode*, int64_t> nearest_child(const RadixNode* node, TokenSpan rest, bool committed_only,
                                               bool with_window = false) const;
  RadixNode* root(const std::string& name);

  void lock(RadixNode* node, const RadixNode* above);  // node and its ancestors below `above`
  void unlock(RadixNode* node, const RadixNode* above);
  void touch(RadixNode* node, bool hit);
  void change_pins(const PrefixLease& lease, int32_t change);
  EvictionEntry eviction_entry(RadixNode* node) const;
  void update_evictable(RadixNode* node);

  RadixNode* new_node(RadixNode* parent);
  void delete_node(RadixNode* node);
  RadixNode* add_child(RadixNode* parent, TokenSpan tokens, std::span<const int32_t> blocks,
                       std::span<const int32_t> window_blocks, uint64_t step, bool live);
  RadixNode* split(RadixNode* node, int64_t tokens);  // returns the new upper part
  void remove_leaf(RadixNode* node, bool free_blocks);
  void evict(int64_t blocks);
  // Puts tokens[lease.tree_tokens, size) into the tree and moves the lock there.
  void extend(const std::string& name, PrefixLease& lease, TokenSpan tokens, uint64_t step, bool live);
  void add_tail(PrefixLease& lease, TokenSpan tokens, uint64_t step, bool live);
  void detach_tail(PrefixLease& lease);
  void release_lease(PrefixLease& lease);  // unlocks, frees what is the sequence's own

  // radix_window.cc
  std::span<const int32_t> window_part(const PrefixLease& lease, int64_t begin, int64_t count) const;
  Place window_place(Place place, TokenSpan tokens) const;
  void lease_window(PrefixLease& lease, int64_t matched);
  void settle_window(PrefixLease& lease);
  void hold_window(int32_t block);
  void drop_window(int32_t block);
  void give_window(RadixNode* node, size_t index, int32_t block);
  void take_window(RadixNode* node, size_t index);
  void split_window(RadixNode* upper, RadixNode* lower, size_t blocks);
  void touch_window(RadixNode* end, bool hit);
  void update_window_evictable(RadixNode* node);
  EvictionEntry window_entry(RadixNode* node) const;
  void evict_window(int64_t blocks);
  void check_window(std::span<const PrefixLease* const> leases, std::span<const RadixNode* const> nodes) const;

  // radix_watch.cc
  void hang(PrefixWatch& watch, RadixNode* from);
  void unhang(PrefixWatch& watch, bool leaves);
  void hang_again(std::span<PrefixWatch* const> watches, RadixNode* from, uint64_t step);
  std::vector<PrefixWatch*> unhang_all(RadixNode* node);
  void set_matched(PrefixWatch& watch, int64_t matched, uint64_t step);
  static WatchesBelow::Branch branch_of(const RadixNode* node) {
    return {node->below->weight, node->branch, const_cast<RadixNode*>(node)};
  }
  void weigh(RadixNode* node, int64_t count_change, int64_t weight_change);
  void watches_after_add(RadixNode* parent, RadixNode* child, int64_t rows_before);
  void watches_after_cut(RadixNode* parent, RadixNode* child);
  void watches_after_removal(RadixNode* parent, RadixNode* child);
  void branches_after_split(RadixNode* upper, RadixNode* lower);
  void check_watches(const RadixNode* node) const;
  void check_node(const RadixNode* node, std::vector<char>& in_tree, int64_t sums[5]) const;

  // Who has a window block: it is free where nobody does.
  struct WindowUse {
    int32_t leases = 0, pins = 0;
    RadixNode* node = nullptr;
  };

  RadixCacheOptions options_;
  BlockAllocator allocator_;
  BlockAllocator window_allocator_;
  std::vector<WindowUse> window_uses_;
  OrderedChunks<EvictionEntry> window_order_;
  int64_t window_cached_ = 0, window_idle_ = 0, window_pinned_ = 0, window_evictions_ = 0;
  std::map<std::string, std::unique_ptr<RadixNode>> roots_;
  OrderedChunks<EvictionEntry> eviction_order_;
  std::vector<RadixNode*> pending_;
  std::vector<PrefixWatch*> changed_watches_;
  OrderedChunks<WatchesBelow::Branch> branches_;  // of the roots
#if defined(__SANITIZE_ADDRESS__)
  static constexpr size_t kSpareNodesMax = 0;  // it is to see every use of what is gone
#else
  static constexpr size_t kSpareNodesMax = 256;
#endif
  static constexpr size_t kSpareTokensMax = 1024;
  std::vector<std::unique_ptr<RadixNode>> spare_nodes_;
  uint64_t next_id_ = 1, clock_ = 0;
  int64_t tree_blocks_ = 0, locked_blocks_ = 0, locked_tokens_ = 0, evictions_ = 0, num_nodes_ = 0;
  int64_t pinned_blocks_ = 0;
};

}  // namespace tokenmill
