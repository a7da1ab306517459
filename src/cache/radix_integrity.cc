// Whether blocks, locks and counts add up.
#include <algorithm>
#include <map>

#include "base/check.h"
#include "cache/radix_cache.h"

namespace tokenmill {

// sums: nodes, blocks, locked blocks, locked tokens, pinned blocks.
void RadixCache::check_node(const RadixNode* node, std::vector<char>& in_tree, int64_t sums[5]) const {
  const int64_t page = page_size();
  const auto tokens = static_cast<int64_t>(node->tokens.size());
  TM_CHECK(tokens > 0 && node->end == node->parent->end + tokens && node->begin() % page == 0);
  TM_CHECK(static_cast<int64_t>(node->blocks.size()) == (tokens + page - 1) / page);
  TM_CHECK(tokens % page == 0 || node->children.empty());
  TM_CHECK(node->locks >= 0 && (node->parent->locks >= node->locks));
  bool evictable = node->locks == 0 && node->children.empty() && node->pending_step == 0;
  TM_CHECK(evictable == node->evictable);
  TM_CHECK(eviction_order_.contains(eviction_entry(const_cast<RadixNode*>(node))) == evictable);
  TM_CHECK(node->pins >= 0 && node->pins <= node->locks);
  TM_CHECK(node->pending_step == 0 || node->locks > 0);
  TM_CHECK(!node->live_tail || (node->locks > 0 && tokens < page));
  TM_CHECK(!node->parent->pending_step || node->pending_step);
  for (int32_t block : node->blocks) {
    TM_CHECK(!allocator_.is_free(block) && !in_tree[block]);
    in_tree[block] = 1;
  }
  sums[0] += 1;
  sums[1] += static_cast<int64_t>(node->blocks.size());
  if (node->locks > 0) {
    sums[2] += static_cast<int64_t>(node->blocks.size());
    sums[3] += tokens;
  }
  if (node->pins > 0) sums[4] += static_cast<int64_t>(node->blocks.size());
}

// A watch stands where a fresh walk from the root would end.
void RadixCache::check_watches(const RadixNode* node) const {
  const RadixNode* root = node;
  while (!root->is_root()) root = root->parent;
  const WatchEntry* before = nullptr;
  for (const WatchEntry& entry : node->watches) {
    const PrefixWatch* watch = entry.watch;
    Place place = descend(const_cast<RadixNode*>(root), watch->tokens, /*committed_only=*/false);
    TM_CHECK(watch->node == node && place.node == node && watch->matched == node->end + place.rows);
    TM_CHECK(entry.key == TokenKey(watch->rest()) && (!before || WatchLess()(*before, entry)));
    TM_CHECK(watch->changed_index < 0 || changed_watches_.at(static_cast<size_t>(watch->changed_index)) == watch);
    before = &entry;
  }
  if (!options_.weigh_watches) return;
  // Every branch is there with its weight, and nothing else.
  auto count = static_cast<int64_t>(node->watches.size());
  size_t branches = 0;
  for (const ChildEntry& child : node->children) {
    if (!child.node->below) continue;
    count += child.node->below->count;
    ++branches;
    TM_CHECK(node->below);
    const auto found = node->below->branches.find(branch_of(child.node));
    TM_CHECK(found != node->below->branches.end() && found->node == child.node);
  }
  TM_CHECK((count > 0) == (node->below != nullptr));
  if (!node->below) return;
  TM_CHECK(node->below->count == count && node->below->weight >= count);
  TM_CHECK(node->below->branches.size() == branches && node->below->own.size() == node->watches.size());
}

void RadixCache::check_integrity(std::span<const PrefixLease* const> leases) const {
  allocator_.check_integrity();
  std::vector<char> owner(allocator_.total_blocks(), 0);  // 1: in the tree, 2: a sequence's own
  std::map<const RadixNode*, int32_t> locks;
  int64_t sums[5] = {0, 0, 0, 0, 0};
  std::vector<const RadixNode*> nodes;
  for (const auto& [name, root] : roots_) nodes.push_back(root.get());
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (!nodes[i]->is_root()) check_node(nodes[i], owner, sums);
    for (const ChildEntry& child : nodes[i]->children) {
      TM_CHECK(child.node->parent == nodes[i] && child.key == TokenKey(child.node->first_block()));
      nodes.push_back(child.node);
    }
    check_watches(nodes[i]);
  }
  TM_CHECK(sums[0] == num_nodes_ && sums[1] == tree_blocks_);
  TM_CHECK(sums[2] == locked_blocks_ && sums[3] == locked_tokens_ && sums[4] == pinned_blocks_);

  const int64_t page = page_size();
  int64_t own_blocks = 0;
  for (const PrefixLease* lease : leases) {
    for (const RadixNode* node = lease->node; node; node = node->parent) ++locks[node];
    for (const RadixNode* node = lease->copy_source; node; node = node->parent) ++locks[node];
    TM_CHECK(lease->tree_tokens == (lease->node ? lease->node->end : 0));
    std::vector<char> own(lease->blocks.size(), 0);
    for (size_t i = (lease->tree_tokens + page - 1) / page; i < own.size(); ++i) own[i] = 1;
    for (const PrefixLease::Duplicate& duplicate : lease->duplicates) own[duplicate.index] = 1;
    for (const RadixNode* node = lease->node; node && !node->is_root(); node = node->parent) {
      for (size_t i = 0; i < node->blocks.size(); ++i) {
        size_t index = node->begin() / page + i;
        TM_CHECK(index < own.size());
        TM_CHECK(own[index] || lease->blocks[index] == node->blocks[i]);
      }
    }
    for (size_t i = 0; i < own.size(); ++i) {
      int32_t block = lease->blocks[i];
      TM_CHECK(!allocator_.is_free(block));
      if (!own[i]) continue;
      TM_CHECK(owner[block] == 0);
      owner[block] = 2;
      ++own_blocks;
    }
  }
  for (const RadixNode* node : nodes) {
    auto it = locks.find(node);
    TM_CHECK(node->locks == (it == locks.end() ? 0 : it->second));
  }
  TM_CHECK(allocator_.free_blocks() + tree_blocks_ + own_blocks == allocator_.total_blocks());
  check_window(leases, nodes);
}

}  // namespace tokenmill
