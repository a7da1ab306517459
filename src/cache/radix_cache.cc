// A sequence's way through the cache: match, enter, settle, finish.
#include "cache/radix_cache.h"

#include <algorithm>

#include "base/check.h"
#include "cache/mutation.h"

namespace tokenmill {

RadixCache::RadixCache(const RadixCacheOptions& options)
    : options_(options),
      allocator_(options.num_blocks),
      window_allocator_(options.window > 0 ? options.window_blocks : 0),
      window_uses_(static_cast<size_t>(window_allocator_.total_blocks())) {
  TM_CHECK(options.page_size >= 1 && options.page_size <= 64);
  TM_CHECK((options.page_size & (options.page_size - 1)) == 0);
}

RadixCache::~RadixCache() {
  std::vector<RadixNode*> open;
  for (auto& [name, root] : roots_) open.push_back(root.get());
  while (!open.empty()) {
    RadixNode* node = open.back();
    open.pop_back();
    for (const ChildEntry& child : node->children) open.push_back(child.node);
    if (!node->is_root()) delete node;
  }
}

PrefixLease RadixCache::match(const std::string& name, TokenSpan tokens, PartialMatch* partial) {
  PrefixLease lease;
  *partial = {};
  if (!enabled()) return lease;
  const int64_t page = page_size();
  Place place = window_place(descend(root(name), tokens, /*committed_only=*/true), tokens);
  int64_t whole = place.rows / page * page;
  if (whole > 0) place.node = split(place.branch, whole);
  place.rows -= whole;

  lease.node = place.node;
  lease.tree_tokens = place.node->end;
  lease.blocks.resize(lease.tree_tokens / page);
  for (const RadixNode* node = place.node; !node->is_root(); node = node->parent) {
    std::copy(node->blocks.begin(), node->blocks.end(), lease.blocks.begin() + node->begin() / page);
  }
  touch(lease.node, /*hit=*/true);
  touch_window(lease.node, /*hit=*/true);
  lock(lease.node, nullptr);
  lease_window(lease, lease.tree_tokens + place.rows);
  if (place.rows > 0) {
    *partial = {place.branch->blocks[0], static_cast<int32_t>(place.rows)};
    lease.copy_source = place.branch;
    if (options_.window > 0) {
      partial->window_block = lease.copy_window = place.branch->window_blocks[0];
      hold_window(lease.copy_window);
    }
    touch(place.branch, /*hit=*/true);
    touch_window(place.branch, /*hit=*/true);
    lock(place.branch, nullptr);
  }
  return lease;
}

void RadixCache::copy_done(PrefixLease& lease) {
  if (lease.copy_source) unlock(lease.copy_source, nullptr);
  lease.copy_source = nullptr;
  if (lease.copy_window >= 0) drop_window(lease.copy_window);
  lease.copy_window = -1;
}

bool RadixCache::acquire(int64_t n, std::vector<int32_t>& out) {
  if (n > available_blocks()) return false;
  if (n > free_blocks()) evict(n - free_blocks());
  return allocator_.acquire(n, out);
}

void RadixCache::enter(const std::string& name, PrefixLease& lease, TokenSpan tokens, uint64_t step) {
  if (!enabled()) return;
  TM_CHECK(step != 0);
  detach_tail(lease);
  extend(name, lease, tokens, step, /*live=*/true);
}

void RadixCache::settle(PrefixLease& lease) {
  settle_window(lease);
  for (const PrefixLease::Duplicate& duplicate : lease.duplicates) {
    if (!mutated(Mutation::kDuplicateFreedEarly)) allocator_.release(lease.blocks[duplicate.index]);
    lease.blocks[duplicate.index] = duplicate.tree_block;
  }
  lease.duplicates.clear();
}

void RadixCache::finish(const std::string& name, PrefixLease& lease, TokenSpan tokens) {
  copy_done(lease);
  if (enabled()) {
    detach_tail(lease);
    // A tail that is still being copied from stays as it is; then what follows it has no place in the tree.
    if (!lease.node || !lease.node->live_tail) extend(name, lease, tokens, 0, /*live=*/false);
    settle_window(lease);
  }
  release_lease(lease);
}

void RadixCache::abandon(PrefixLease& lease) {
  copy_done(lease);
  if (enabled()) detach_tail(lease);
  release_lease(lease);
}

void RadixCache::extend(const std::string& name, PrefixLease& lease, TokenSpan tokens, uint64_t step, bool live) {
  const int64_t page = page_size();
  if (!lease.node) {
    lease.node = root(name);
    lock(lease.node, nullptr);
  }
  TM_CHECK(lease.tree_tokens == lease.node->end && lease.tree_tokens % page == 0);
  const int64_t whole_end = static_cast<int64_t>(tokens.size()) / page * page;
  RadixNode* node = lease.node;
  while (node->end < whole_end) {
    const int64_t begin = node->end;
    RadixNode* child = exact_child(node, tokens.subspan(begin));
    if (!child) break;
    int64_t same = common_prefix(child->tokens, tokens.subspan(begin, whole_end - begin)) / page * page;
    if (same < static_cast<int64_t>(child->tokens.size())) child = split(child, same);
    for (size_t i = 0; i < child->blocks.size(); ++i) {
      lease.duplicates.push_back({static_cast<int32_t>(begin / page + i), child->blocks[i]});
      if (mutated(Mutation::kDuplicateFreedEarly)) allocator_.release(lease.blocks[begin / page + i]);
    }
    node = child;
  }
  if (node->end < whole_end) {
    const int64_t begin = node->end;
    std::span<const int32_t> blocks(lease.blocks);
    node = add_child(node, tokens.subspan(begin, whole_end - begin),
                     blocks.subspan(begin / page, (whole_end - begin) / page),
                     window_part(lease, begin / page, (whole_end - begin) / page), step, /*live=*/false);
  }
  lock(node, lease.node);
  lease.node = node;
  lease.tree_tokens = node->end;
  add_tail(lease, tokens, step, live);
}

// The rows of a partly filled last block, unless the tree holds them already.
void RadixCache::add_tail(PrefixLease& lease, TokenSpan tokens, uint64_t step, bool live) {
  TokenSpan tail = tokens.subspan(lease.tree_tokens);
  TM_CHECK(static_cast<int64_t>(tail.size()) < page_size());
  if (tail.empty()) return;
  auto [nearest, rows] = nearest_child(lease.node, tail, /*committed_only=*/false, /*with_window=*/true);
  if (nearest && rows == static_cast<int64_t>(tail.size())) return;
  const int64_t index = lease.tree_tokens / page_size();
  if (options_.window > 0) {
    const auto equal = lease.node->children.find(TokenQuery(tail));  // but for its window block
    if (equal != lease.node->children.end()) {
      const int32_t own = lease.window_blocks[static_cast<size_t>(index)];
      if (step == 0 && own >= 0) give_window(equal->node, 0, own);
      return;
    }
  }
  std::span<const int32_t> blocks(lease.blocks);
  RadixNode* node = add_child(lease.node, tail, blocks.subspan(index, 1), window_part(lease, index, 1), step, live);
  lock(node, lease.node);
  lease.node = node;
  lease.tree_tokens = node->end;
}

// The live tail leaves the tree, so that its block can be entered again with more rows. Where another sequence is about
// to copy from it, it becomes an ordinary block of the tree only once its owner has no more use for it (see finish).
void RadixCache::detach_tail(PrefixLease& lease) {
  if (!lease.node || !lease.node->live_tail || lease.node->locks > 1) return;
  RadixNode* tail = lease.node;
  lease.node = tail->parent;
  lease.tree_tokens = lease.node->end;
  unlock(tail, lease.node);
  if (options_.window > 0) {  // behind the window by now, but still of use in the tree
    const auto index = static_cast<size_t>(lease.tree_tokens / page_size());
    const int32_t block = tail->window_blocks[0];
    if (block >= 0 && lease.window_blocks[index] < 0) {
      hold_window(block);
      lease.window_blocks[index] = block;
    }
  }
  remove_leaf(tail, /*free_blocks=*/false);
}

void RadixCache::release_lease(PrefixLease& lease) {
  for (const PrefixLease::Duplicate& duplicate : lease.duplicates) {
    if (!mutated(Mutation::kDuplicateFreedEarly)) allocator_.release(lease.blocks[duplicate.index]);
  }
  const int64_t in_tree = (lease.tree_tokens + page_size() - 1) / page_size();
  for (size_t i = in_tree; i < lease.blocks.size(); ++i) allocator_.release(lease.blocks[i]);
  for (const int32_t block : lease.window_blocks) {
    if (block >= 0) drop_window(block);
  }
  if (lease.node) {
    lease.node->live_tail = false;
    touch(lease.node, /*hit=*/false);
    touch_window(lease.node, /*hit=*/false);
    unlock(lease.node, nullptr);
  }
  lease = {};
}

void RadixCache::commit(uint64_t step) {
  for (RadixNode* node : pending_) {
    TM_CHECK(node->pending_step == step);
    node->pending_step = 0;
    update_evictable(node);
  }
  pending_.clear();
}

void RadixCache::fail(uint64_t step) {
  std::vector<RadixNode*> failed;
  failed.swap(pending_);
  std::sort(failed.begin(), failed.end(), [](const RadixNode* a, const RadixNode* b) { return a->end > b->end; });
  for (RadixNode* node : failed) {
    TM_CHECK(node->pending_step == step);
    node->pending_step = 0;
    if (mutated(Mutation::kFailedStepKept)) {
      update_evictable(node);
    } else {
      remove_leaf(node, /*free_blocks=*/true);
    }
  }
}

PrefixLease RadixCache::pin(const std::string& name, TokenSpan tokens) {
  PartialMatch rows;
  PrefixLease lease = match(name, tokens, &rows);
  // The tail that a running sequence still writes cannot be held: its owner must be able to take it out and go on.
  if (lease.copy_source && lease.copy_source->live_tail) copy_done(lease);
  change_pins(lease, 1);
  return lease;
}

void RadixCache::unpin(PrefixLease& lease) {
  change_pins(lease, -1);
  abandon(lease);
}

void RadixCache::change_pins(const PrefixLease& lease, int32_t change) {
  for (RadixNode* end : {lease.node, lease.copy_source}) {
    for (RadixNode* node = end; node; node = node->parent) {
      const bool was_pinned = node->pins > 0;
      node->pins += change;
      if ((node->pins > 0) != was_pinned) pinned_blocks_ += change * static_cast<int64_t>(node->blocks.size());
    }
  }
  const auto change_window = [&](int32_t block) {
    if (block < 0) return;
    WindowUse& use = window_uses_[block];
    const bool was_pinned = use.pins > 0;
    use.pins += change;
    if ((use.pins > 0) != was_pinned) window_pinned_ += change;
  };
  for (const int32_t block : lease.window_blocks) change_window(block);
  change_window(lease.copy_window);
}

void RadixCache::clear() {
  TM_CHECK(locked_blocks_ == pinned_blocks_ && pending_.empty());
  while (!eviction_order_.empty()) remove_leaf(std::get<2>(eviction_order_.front()), /*free_blocks=*/true);
  TM_CHECK(tree_blocks_ == pinned_blocks_);
  if (window_idle_ > 0) evict_window(window_idle_);
  std::erase_if(roots_, [](const auto& entry) { return entry.second->locks == 0 && entry.second->watches.empty(); });
}

}  // namespace tokenmill
