// The tree itself: walking, splitting, locks, eviction.
#include <algorithm>

#include "base/check.h"
#include "cache/mutation.h"
#include "cache/radix_cache.h"

namespace tokenmill {

RadixNode* RadixCache::root(const std::string& name) {
  std::unique_ptr<RadixNode>& root = roots_[name];
  if (!root) {
    root = std::make_unique<RadixNode>();
    root->id = root->branch = next_id_++;
    root->page_size = page_size();
  }
  return root.get();
}

RadixNode* RadixCache::exact_child(const RadixNode* node, TokenSpan rest) const {
  if (static_cast<int64_t>(rest.size()) < page_size()) return nullptr;
  const auto it = node->children.find(TokenQuery(rest.first(page_size())));
  return it == node->children.end() ? nullptr : it->node;
}

// The child that shares most leading tokens with `rest`, and how many of its first block's. In the children's order the
// shared length falls in both directions from the query's place, so each side is walked only while it can still win.
std::pair<RadixNode*, int64_t> RadixCache::nearest_child(const RadixNode* node, TokenSpan rest, bool committed_only,
                                                         bool with_window) const {
  std::pair<RadixNode*, int64_t> best = {nullptr, 0};
  TokenSpan query = rest.first(std::min<size_t>(rest.size(), page_size()));
  if (query.empty() || node->children.empty()) return best;
  const TokenQuery wanted(query);
  const auto place = node->children.lower_bound(wanted);
  auto consider = [&](const ChildEntry& entry) {  // false: no use to look further this way
    RadixNode* child = entry.node;
    int64_t rows = entry.key.common(wanted.key);
    if (rows == 4) rows = common_prefix(child->first_block(), query);
    if (rows <= best.second) return false;
    if (committed_only && child->pending_step && !mutated(Mutation::kCopyFromUncommitted)) return true;
    if (with_window && options_.window > 0 && child->window_blocks[0] < 0) return true;
    best = {child, rows};
    return false;
  };
  for (auto it = place; it != node->children.end() && consider(*it); ++it) {
  }
  for (auto it = place; it != node->children.begin() && consider(*std::prev(it)); --it) {
  }
  return best;
}

RadixCache::Place RadixCache::descend(RadixNode* from, TokenSpan tokens, bool committed_only) const {
  for (RadixNode* node = from;;) {
    TokenSpan rest = tokens.subspan(node->end);
    RadixNode* child = exact_child(node, rest);
    if (!child || (committed_only && child->pending_step)) {
      auto [branch, rows] = nearest_child(node, rest, committed_only);
      return {node, branch, rows};
    }
    int64_t same = common_prefix(child->tokens, rest);
    // An edge with a partly filled last block is never a place to go on from: it has no children.
    if (same < static_cast<int64_t>(child->tokens.size()) || same % page_size() != 0) return {node, child, same};
    node = child;
  }
}

// Nodes come and go with every sequence: a few are kept, with the room in their vectors.
RadixNode* RadixCache::new_node(RadixNode* parent) {
  std::unique_ptr<RadixNode> node;
  if (spare_nodes_.empty()) {
    node = std::make_unique<RadixNode>();
  } else {
    node = std::move(spare_nodes_.back());
    spare_nodes_.pop_back();
  }
  node->id = node->branch = next_id_++;
  node->page_size = page_size();
  node->parent = parent;
  return node.release();
}

void RadixCache::delete_node(RadixNode* node) {
  std::unique_ptr<RadixNode> gone(node);
  if (spare_nodes_.size() >= kSpareNodesMax || node->tokens.capacity() > kSpareTokensMax) return;
  RadixNode fresh;
  fresh.tokens = std::move(node->tokens);
  fresh.blocks = std::move(node->blocks);
  fresh.window_blocks = std::move(node->window_blocks);
  fresh.tokens.clear();
  fresh.blocks.clear();
  fresh.window_blocks.clear();
  *node = std::move(fresh);
  spare_nodes_.push_back(std::move(gone));
}

RadixNode* RadixCache::add_child(RadixNode* parent, TokenSpan tokens, std::span<const int32_t> blocks,
                                 std::span<const int32_t> window_blocks, uint64_t step, bool live) {
  TM_CHECK(parent->end % page_size() == 0 && !tokens.empty());
  // A leaf whose few rows the new block repeats is of no more use.
  auto [shadowed, rows] = nearest_child(parent, tokens, /*committed_only=*/true);
  const bool loses_window = shadowed && options_.window > 0 && shadowed->window_blocks[0] >= 0 && window_blocks[0] < 0;
  if (shadowed && rows == static_cast<int64_t>(shadowed->tokens.size()) && shadowed->locks == 0 && !loses_window) {
    remove_leaf(shadowed, /*free_blocks=*/true);
    rows = 0;
  }
  RadixNode* node = new_node(parent);
  node->tokens.assign(tokens.begin(), tokens.end());
  node->blocks.assign(blocks.begin(), blocks.end());
  node->end = parent->end + static_cast<int64_t>(tokens.size());
  node->history = {.created = ++clock_, .last_access = clock_, .hits = 0};
  node->window_history = node->history;
  node->window_blocks.assign(window_blocks.size(), -1);
  for (size_t i = 0; i < window_blocks.size(); ++i) {
    if (window_blocks[i] >= 0) give_window(node, i, window_blocks[i]);
  }
  node->pending_step = step;
  node->live_tail = live;
  if (step) pending_.push_back(node);
  TM_CHECK(parent->children.insert(node->entry()));
  tree_blocks_ += static_cast<int64_t>(blocks.size());
  ++num_nodes_;
  update_evictable(parent);
  update_evictable(node);
  watches_after_add(parent, node, rows);
  return node;
}

// Cuts an edge after `tokens` tokens (whole blocks). The lower part keeps the node, so leases that end in it stay
// right.
RadixNode* RadixCache::split(RadixNode* node, int64_t tokens) {
  TM_CHECK(tokens % page_size() == 0 && tokens > 0 && tokens < static_cast<int64_t>(node->tokens.size()));
  RadixNode* parent = node->parent;
  RadixNode* upper = new_node(parent);
  upper->branch = node->branch;
  upper->end = node->begin() + tokens;
  upper->locks = node->locks;
  upper->pins = node->pins;
  upper->history = node->history;
  upper->pending_step = node->pending_step;
  if (upper->pending_step) pending_.push_back(upper);
  parent->children.erase(node->entry());
  auto cut = static_cast<std::ptrdiff_t>(tokens);
  upper->tokens.assign(node->tokens.begin(), node->tokens.begin() + cut);
  upper->blocks.assign(node->blocks.begin(), node->blocks.begin() + cut / page_size());
  node->tokens.erase(node->tokens.begin(), node->tokens.begin() + cut);
  node->blocks.erase(node->blocks.begin(), node->blocks.begin() + cut / page_size());
  split_window(upper, node, static_cast<size_t>(tokens / page_size()));
  node->parent = upper;
  upper->children.insert(node->entry());
  parent->children.insert(upper->entry());
  ++num_nodes_;
  branches_after_split(upper, node);
  watches_after_cut(parent, upper);
  return upper;
}

void RadixCache::remove_leaf(RadixNode* node, bool free_blocks) {
  TM_CHECK(node->children.empty() && !node->is_root());
  TM_CHECK(node->locks == 0 || mutated(Mutation::kLeaseNotTaken));
  RadixNode* parent = node->parent;
  if (node->evictable) eviction_order_.erase(eviction_entry(node));
  node->evictable = false;
  parent->children.erase(node->entry());
  if (node->pending_step) std::erase(pending_, node);
  tree_blocks_ -= static_cast<int64_t>(node->blocks.size());
  for (size_t i = 0; i < node->window_blocks.size(); ++i) take_window(node, i);
  --num_nodes_;
  if (free_blocks) {
    for (int32_t block : node->blocks) allocator_.release(block);
  }
  update_evictable(parent);
  watches_after_removal(parent, node);
  if (!mutated(Mutation::kLeaseNotTaken)) delete_node(node);  // there, leases still point to it
}

void RadixCache::lock(RadixNode* node, const RadixNode* above) {
  for (; node != above; node = node->parent) {
    if (node->locks++ > 0) continue;
    locked_blocks_ += static_cast<int64_t>(node->blocks.size());
    locked_tokens_ += static_cast<int64_t>(node->tokens.size());
    update_evictable(node);
  }
}

void RadixCache::unlock(RadixNode* node, const RadixNode* above) {
  for (; node != above; node = node->parent) {
    TM_CHECK(node->locks > 0);
    if (--node->locks > 0) continue;
    locked_blocks_ -= static_cast<int64_t>(node->blocks.size());
    locked_tokens_ -= static_cast<int64_t>(node->tokens.size());
    update_evictable(node);
  }
}

void RadixCache::touch(RadixNode* node, bool hit) {
  ++clock_;
  for (; node; node = node->parent) {
    if (node->evictable) eviction_order_.erase(eviction_entry(node));
    node->evictable = false;
    node->history.last_access = clock_;
    if (hit) ++node->history.hits;
    update_evictable(node);
  }
}

void RadixCache::update_evictable(RadixNode* node) {
  const bool held = node->locks > 0 && !mutated(Mutation::kLeaseNotTaken);
  bool wanted = !held && node->children.empty() && node->pending_step == 0 && !node->is_root();
  if (wanted == node->evictable) return;
  node->evictable = wanted;
  if (wanted) {
    eviction_order_.insert(eviction_entry(node));
  } else {
    eviction_order_.erase(eviction_entry(node));
  }
}

RadixCache::EvictionEntry RadixCache::eviction_entry(RadixNode* node) const {
  return {eviction_key(options_.eviction, node->history), node->id, node};
}

// The policy's first leaf first, from its end, and no more than needed.
void RadixCache::evict(int64_t blocks) {
  while (blocks > 0) {
    TM_CHECK(!eviction_order_.empty());
    RadixNode* node = std::get<2>(eviction_order_.front());
    int64_t held = static_cast<int64_t>(node->blocks.size());
    int64_t taken = std::min(blocks, held);
    blocks -= taken;
    evictions_ += taken;
    if (taken == held) {
      remove_leaf(node, /*free_blocks=*/true);
      continue;
    }
    const std::vector<PrefixWatch*> watches = unhang_all(node);
    for (int64_t i = 0; i < taken; ++i) {
      allocator_.release(node->blocks.back());
      node->blocks.pop_back();
      if (options_.window == 0) continue;
      take_window(node, node->window_blocks.size() - 1);
      node->window_blocks.pop_back();
      node->window_front = std::min(node->window_front, node->window_blocks.size());
    }
    tree_blocks_ -= taken;
    int64_t kept = static_cast<int64_t>(node->blocks.size()) * page_size();
    node->end -= static_cast<int64_t>(node->tokens.size()) - kept;
    node->tokens.resize(kept);
    watches_after_cut(node->parent, node);
    hang_again(watches, node->parent, 0);
  }
}

}  // namespace tokenmill
