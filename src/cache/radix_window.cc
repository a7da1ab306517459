// The blocks of layers with a window: who holds them, where a match may end, and which go first when they run out.
//
// A block is in the tree (one node), held by leases, or both; it is free when neither. What only the tree has is idle:
// it can be evicted on its own, whoever holds the tokens, and leaves a hole of -1.
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "cache/mutation.h"
#include "cache/radix_cache.h"

namespace tokenmill {

void RadixCache::hold_window(int32_t block) {
  WindowUse& use = window_uses_[block];
  if (use.leases++ > 0 || !use.node) return;
  --use.node->window_idle;
  --window_idle_;
  update_window_evictable(use.node);
}

void RadixCache::drop_window(int32_t block) {
  WindowUse& use = window_uses_[block];
  TM_CHECK(use.leases > 0);
  if (--use.leases > 0) return;
  if (!use.node) return window_allocator_.release(block);
  ++use.node->window_idle;
  ++window_idle_;
  update_window_evictable(use.node);
}

void RadixCache::give_window(RadixNode* node, size_t index, int32_t block) {
  WindowUse& use = window_uses_[block];
  TM_CHECK(!use.node && use.leases > 0 && node->window_blocks[index] < 0);
  use.node = node;
  node->window_blocks[index] = block;
  node->window_front = std::min(node->window_front, index);
  ++node->window_held;
  ++window_cached_;
}

void RadixCache::take_window(RadixNode* node, size_t index) {
  const int32_t block = std::exchange(node->window_blocks[index], -1);
  if (block < 0) return;
  WindowUse& use = window_uses_[block];
  TM_CHECK(use.node == node);
  use.node = nullptr;
  --node->window_held;
  --window_cached_;
  if (use.leases > 0) return;
  --node->window_idle;
  --window_idle_;
  window_allocator_.release(block);
  update_window_evictable(node);
}

// `upper` has just got the first `blocks` blocks of `lower`'s tokens.
void RadixCache::split_window(RadixNode* upper, RadixNode* lower, size_t blocks) {
  if (options_.window == 0) return;
  const auto cut = lower->window_blocks.begin() + static_cast<std::ptrdiff_t>(blocks);
  upper->window_blocks.assign(lower->window_blocks.begin(), cut);
  lower->window_blocks.erase(lower->window_blocks.begin(), cut);
  upper->window_history = lower->window_history;
  upper->window_front = std::min(lower->window_front, blocks);
  lower->window_front -= upper->window_front;
  for (const int32_t block : upper->window_blocks) {
    if (block < 0) continue;
    WindowUse& use = window_uses_[block];
    use.node = upper;
    --lower->window_held;
    ++upper->window_held;
    if (use.leases > 0) continue;
    --lower->window_idle;
    ++upper->window_idle;
  }
  update_window_evictable(lower);
  update_window_evictable(upper);
}

RadixCache::EvictionEntry RadixCache::window_entry(RadixNode* node) const {
  return {eviction_key(options_.eviction, node->window_history), node->id, node};
}

void RadixCache::update_window_evictable(RadixNode* node) {
  const bool wanted = node->window_idle > 0;
  if (wanted == node->window_evictable) return;
  node->window_evictable = wanted;
  if (wanted) {
    window_order_.insert(window_entry(node));
  } else {
    window_order_.erase(window_entry(node));
  }
}

// A use that ends at `end` needs the window before it, and nothing further up.
void RadixCache::touch_window(RadixNode* end, bool hit) {
  if (options_.window == 0 || !end) return;
  const int64_t begin = end->end - options_.window;
  for (RadixNode* node = end; node && node->end > begin; node = node->parent) {
    if (node->window_evictable) window_order_.erase(window_entry(node));
    node->window_evictable = false;
    node->window_history.last_access = clock_;
    if (hit) ++node->window_history.hits;
    update_window_evictable(node);
  }
}

std::span<const int32_t> RadixCache::window_part(const PrefixLease& lease, int64_t begin, int64_t count) const {
  if (options_.window == 0) return {};
  return std::span(lease.window_blocks).subspan(static_cast<size_t>(begin), static_cast<size_t>(count));
}

// The longest prefix of what `place` matches, or of a sibling's rows, whose last `window` tokens are there.
RadixCache::Place RadixCache::window_place(Place place, TokenSpan tokens) const {
  if (options_.window == 0) return place;
  const int64_t page = page_size();
  Place best = place;
  int64_t end = place.node->end + place.rows;
  const auto found = [&](const RadixNode* node, int64_t blocks) {  // walks back over `blocks` blocks of the node
    for (int64_t i = blocks - 1; i >= 0; --i) {
      const int64_t begin = node->begin() + i * page;
      if (node->window_blocks[static_cast<size_t>(i)] >= 0) {
        if (end - begin >= options_.window) return true;
        continue;
      }
      // A hole: the match can end here at the latest.
      best = {node->parent, i > 0 ? const_cast<RadixNode*>(node) : nullptr, i * page};
      if (i == 0) {
        auto [sibling, rows] =
            nearest_child(node->parent, tokens.subspan(static_cast<size_t>(begin)), /*committed_only=*/true, true);
        if (sibling) best = {node->parent, sibling, rows};
      }
      end = best.node->end + best.rows;
    }
    return false;
  };
  if (place.branch && found(place.branch, (place.rows + page - 1) / page)) return best;
  for (const RadixNode* node = place.node; !node->is_root(); node = node->parent) {
    if (found(node, static_cast<int64_t>(node->blocks.size()))) return best;
  }
  return best;
}

// Holds what the next token after `matched` tokens needs; where the rows to be copied make up for a hole, also without.
void RadixCache::lease_window(PrefixLease& lease, int64_t matched) {
  if (options_.window == 0) return;
  const int64_t page = page_size(), count = static_cast<int64_t>(lease.blocks.size());
  const int64_t first = std::max<int64_t>(0, matched - options_.window) / page;
  const int64_t wished = std::max<int64_t>(0, lease.tree_tokens - options_.window) / page;
  lease.window_blocks.assign(lease.blocks.size(), -1);
  lease.window_begin = static_cast<size_t>(std::min(first, count));
  for (const RadixNode* node = lease.node; !node->is_root() && node->end > wished * page; node = node->parent) {
    for (auto i = static_cast<int64_t>(node->blocks.size()) - 1; i >= 0; --i) {
      const int64_t index = node->begin() / page + i;
      const int32_t block = node->window_blocks[static_cast<size_t>(i)];
      if (index < wished || (index < first && block < 0)) return;
      TM_CHECK(block >= 0);
      hold_window(block);
      lease.window_blocks[static_cast<size_t>(index)] = block;
      lease.window_begin = static_cast<size_t>(index);
    }
  }
}

bool RadixCache::acquire_window(int64_t end, PrefixLease& lease) {
  if (options_.window == 0) return true;
  const int64_t missing = end - static_cast<int64_t>(lease.window_blocks.size());
  if (missing <= 0) return true;
  if (missing > window_available_blocks()) return false;
  if (missing > window_free_blocks()) evict_window(missing - window_free_blocks());
  const size_t begin = lease.window_blocks.size();
  TM_CHECK(window_allocator_.acquire(missing, lease.window_blocks));
  for (size_t i = begin; i < lease.window_blocks.size(); ++i) window_uses_[lease.window_blocks[i]].leases = 1;
  return true;
}

void RadixCache::trim_window(PrefixLease& lease, int64_t kv_len) {
  if (options_.window == 0) return;
  const int64_t early = mutated(Mutation::kWindowFreedEarly) ? page_size() + 1 : 0;
  const auto keep = static_cast<size_t>(std::max<int64_t>(0, kv_len + early - options_.window) / page_size());
  for (; lease.window_begin < std::min(keep, lease.window_blocks.size()); ++lease.window_begin) {
    int32_t& block = lease.window_blocks[lease.window_begin];
    if (block >= 0) drop_window(block);
    block = -1;
  }
}

// The table switches to the tree's equal blocks; where the tree has a hole, the sequence's own fills it.
void RadixCache::settle_window(PrefixLease& lease) {
  if (options_.window == 0) return;
  RadixNode* node = lease.node;
  for (auto duplicate = lease.duplicates.rbegin(); duplicate != lease.duplicates.rend(); ++duplicate) {
    const int64_t position = int64_t{duplicate->index} * page_size();
    while (node->begin() > position) node = node->parent;
    const auto index = static_cast<size_t>((position - node->begin()) / page_size());
    int32_t& own = lease.window_blocks[static_cast<size_t>(duplicate->index)];
    if (own < 0) continue;
    const int32_t there = node->window_blocks[index];
    if (there < 0) {
      give_window(node, index, own);
    } else if (there != own) {
      hold_window(there);
      drop_window(std::exchange(own, there));
    }
  }
}

// The policy's first node first, from its begin: the last blocks are what a match that ends with the node needs. A leaf
// that has none left can be the end of no match: it goes as a whole.
void RadixCache::evict_window(int64_t blocks) {
  const int64_t wanted = window_free_blocks() + blocks;
  while (window_free_blocks() < wanted) {
    TM_CHECK(!window_order_.empty());
    RadixNode* node = std::get<2>(window_order_.front());
    for (size_t i = node->window_front; node->window_idle > 0 && window_free_blocks() < wanted; ++i) {
      const int32_t block = node->window_blocks.at(i);
      if (block < 0 || window_uses_[block].leases > 0) continue;
      take_window(node, i);
      ++window_evictions_;
    }
    while (node->window_front < node->window_blocks.size() && node->window_blocks[node->window_front] < 0) {
      ++node->window_front;
    }
    while (node->evictable && node->window_held == 0) {
      RadixNode* const parent = node->parent;
      evictions_ += static_cast<int64_t>(node->blocks.size());
      remove_leaf(node, /*free_blocks=*/true);
      node = parent;
    }
  }
}

void RadixCache::check_window(std::span<const PrefixLease* const> leases,
                              std::span<const RadixNode* const> nodes) const {
  window_allocator_.check_integrity();
  std::vector<WindowUse> uses(window_uses_.size());
  int64_t cached = 0, all_idle = 0;
  for (const RadixNode* node : nodes) {
    if (node->is_root()) continue;
    TM_CHECK(node->window_blocks.size() == (options_.window > 0 ? node->blocks.size() : 0));
    int64_t held = 0, idle = 0;
    for (size_t i = 0; i < node->window_blocks.size(); ++i) {
      const int32_t block = node->window_blocks[i];
      TM_CHECK(block < 0 || i >= node->window_front);
      if (block < 0) continue;
      TM_CHECK(!window_allocator_.is_free(block) && !uses[block].node && window_uses_[block].node == node);
      uses[block].node = const_cast<RadixNode*>(node);
      ++held;
      idle += window_uses_[block].leases == 0;
    }
    TM_CHECK(node->window_held == held && node->window_idle == idle && node->window_evictable == (idle > 0));
    TM_CHECK(window_order_.contains(window_entry(const_cast<RadixNode*>(node))) == (idle > 0));
    cached += held;
    all_idle += idle;
  }
  TM_CHECK(window_cached_ == cached && window_idle_ == all_idle);
  for (const PrefixLease* lease : leases) {
    for (size_t i = 0; i < lease->window_blocks.size(); ++i) {
      const int32_t block = lease->window_blocks[i];
      TM_CHECK((block >= 0) == (i >= lease->window_begin));
      if (block >= 0) ++uses[block].leases;
    }
    if (lease->copy_window >= 0) ++uses[lease->copy_window].leases;
  }
  for (size_t block = 0; block < uses.size(); ++block) {
    TM_CHECK(uses[block].leases == window_uses_[block].leases && uses[block].node == window_uses_[block].node);
    const bool used = uses[block].leases > 0 || uses[block].node;
    TM_CHECK(used == !window_allocator_.is_free(static_cast<int32_t>(block)));
    // What two leases hold is read-only: it is in the tree.
    TM_CHECK(uses[block].leases <= 1 || uses[block].node);
  }
}

}  // namespace tokenmill
