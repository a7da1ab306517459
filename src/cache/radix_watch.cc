// Waiting sequences hang on the tree, each at the deepest node that is a whole prefix of its tokens, in the order of
// what follows there. What a new edge matches better than the edges before it, and what an edge that goes has matched
// alone, is a run around the edge's place in that order; so a change costs a search and what it really changes.
//
//   new edge          c a b
//   hang here    a a b | c a a   c a b x   c b a | d …       the run: from the place outwards, while the match grows
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "cache/radix_cache.h"

namespace tokenmill {
namespace {

int64_t common_rows(const TokenQuery& edge, const WatchEntry& entry) {
  const int64_t rows = edge.key.common(entry.key);
  return rows < 4 ? rows : common_prefix(edge.tokens, entry.watch->rest());
}

}  // namespace

void RadixCache::watch(const std::string& name, PrefixWatch& watch) {
  TM_CHECK(watch.node == nullptr && watch.changed_index < 0);
  watch.matched = watch.matched_before = 0;
  watch.grown_in = 0;
  if (!enabled()) return;
  hang(watch, root(name));
  if (pending_.empty()) return;
  RadixNode* committed = watch.node;
  while (committed->pending_step) committed = committed->parent;
  const Place place = descend(committed, watch.tokens, /*committed_only=*/true);
  watch.matched_before = place.node->end + place.rows;
  watch.grown_in = pending_.front()->pending_step;
}

void RadixCache::unwatch(PrefixWatch& watch) {
  if (watch.node) unhang(watch, /*leaves=*/true);
  if (watch.changed_index < 0) return;
  PrefixWatch* last = changed_watches_.back();
  changed_watches_[static_cast<size_t>(watch.changed_index)] = last;
  last->changed_index = watch.changed_index;
  changed_watches_.pop_back();
  watch.changed_index = -1;
}

int64_t RadixCache::uncommitted_tokens(const PrefixWatch& watch) const {
  if (pending_.empty() || watch.grown_in != pending_.front()->pending_step) return 0;
  return std::max<int64_t>(0, watch.matched - watch.matched_before);
}

std::vector<PrefixWatch*> RadixCache::take_changed_watches() {
  for (PrefixWatch* watch : changed_watches_) watch->changed_index = -1;
  return std::exchange(changed_watches_, {});
}

int64_t RadixCache::reachable_tokens(const PrefixWatch& watch) const {
  if (!watch.node || options_.window == 0) return watch.matched;
  const Place place = window_place(descend(watch.node, watch.tokens, /*committed_only=*/false), watch.tokens);
  return place.node->end + place.rows;
}

// It matches so much now; what it has gained is written by `step` (0: committed).
void RadixCache::set_matched(PrefixWatch& watch, int64_t matched, uint64_t step) {
  if (matched == watch.matched) return;
  if (matched < watch.matched) {
    watch.matched_before = std::min(watch.matched_before, matched);
  } else if (step == 0) {
    watch.matched_before = matched;
  } else if (watch.grown_in != step) {
    watch.grown_in = step;
    watch.matched_before = watch.matched;
  }
  watch.matched = matched;
  if (watch.changed_index >= 0) return;
  watch.changed_index = static_cast<int64_t>(changed_watches_.size());
  changed_watches_.push_back(&watch);
}

void RadixCache::hang(PrefixWatch& watch, RadixNode* from) {
  const Place place = descend(from, watch.tokens, /*committed_only=*/false);
  RadixNode* node = watch.node = place.node;
  watch.matched = node->end + place.rows;
  TM_CHECK(node->watches.insert({TokenKey(watch.rest()), &watch}));
  if (!options_.weigh_watches) return;
  weigh(node, 1, 1);
  node->below->own.insert({watch.order, watch.id, &watch});
}

void RadixCache::unhang(PrefixWatch& watch, bool leaves) {
  RadixNode* node = watch.node;
  TM_CHECK(node->watches.erase(WatchEntry{TokenKey(watch.rest()), &watch}));
  watch.node = nullptr;
  if (!options_.weigh_watches) return;
  node->below->own.erase(WatchesBelow::Own{watch.order, watch.id, &watch});
  weigh(node, -1, leaves ? 0 : -1);
}

// They hang nowhere now; `from` is a prefix of them. What they have gained is written by `step`.
void RadixCache::hang_again(std::span<PrefixWatch* const> watches, RadixNode* from, uint64_t step) {
  for (PrefixWatch* watch : watches) {
    const int64_t before = watch->matched;
    hang(*watch, from);
    set_matched(*watch, std::exchange(watch->matched, before), step);
  }
}

std::vector<PrefixWatch*> RadixCache::unhang_all(RadixNode* node) {
  std::vector<PrefixWatch*> watches;
  if (node->watches.empty()) return watches;
  watches.reserve(node->watches.size());
  for (const WatchEntry& entry : node->watches) {
    entry.watch->node = nullptr;
    watches.push_back(entry.watch);
  }
  node->watches.clear();
  if (!options_.weigh_watches) return watches;
  node->below->own.clear();
  const auto count = static_cast<int64_t>(watches.size());
  weigh(node, -count, -count);
  return watches;
}

// So many watches more at `node`.
void RadixCache::weigh(RadixNode* node, int64_t count_change, int64_t weight_change) {
  for (; node; node = node->parent) {
    if (!node->below) node->below = std::make_unique<WatchesBelow>();
    if (node->parent && !node->parent->below) node->parent->below = std::make_unique<WatchesBelow>();
    auto& siblings = node->parent ? node->parent->below->branches : branches_;
    WatchesBelow& below = *node->below;
    const bool stays = below.count + count_change > 0;
    if (below.count > 0 && (weight_change != 0 || !stays)) siblings.erase(branch_of(node));
    const bool is_new = below.count == 0;
    below.count += count_change;
    below.weight += weight_change;
    if (stays && (weight_change != 0 || is_new)) siblings.insert(branch_of(node));
    if (!stays) node->below.reset();
  }
}

void RadixCache::branches_after_split(RadixNode* upper, RadixNode* lower) {
  if (!lower->below) return;
  upper->below = std::make_unique<WatchesBelow>();
  upper->below->count = lower->below->count;
  upper->below->weight = lower->below->weight;
  upper->below->branches.insert(branch_of(lower));
  auto& siblings = upper->parent->below->branches;
  siblings.erase(branch_of(lower));
  siblings.insert(branch_of(upper));
}

// Some sibling shares the first `rows_before` tokens of the new edge: whoever does is no better off.
void RadixCache::watches_after_add(RadixNode* parent, RadixNode* child, int64_t rows_before) {
  if (parent->watches.empty()) return;
  const TokenQuery edge{child->tokens};
  const auto whole = static_cast<int64_t>(child->tokens.size() / page_size() * page_size());
  std::vector<PrefixWatch*> whole_matches;
  const auto grows = [&](const WatchEntry& entry) {
    const int64_t rows = common_rows(edge, entry);
    if (rows <= rows_before) return false;
    if (parent->end + rows <= entry.watch->matched) return false;
    if (rows == static_cast<int64_t>(child->tokens.size()) && rows == whole) {
      whole_matches.push_back(entry.watch);
    } else {
      set_matched(*entry.watch, parent->end + rows, child->pending_step);
    }
    return true;
  };
  const auto place = parent->watches.lower_bound(edge);
  for (auto it = place; it != parent->watches.end() && grows(*it); ++it) {
  }
  for (auto it = place; it != parent->watches.begin() && grows(*std::prev(it)); --it) {
  }
  for (PrefixWatch* watch : whole_matches) unhang(*watch, /*leaves=*/false);
  hang_again(whole_matches, parent, child->pending_step);
}

// The edge to `child` has become shorter, or is the upper part of one that was: what begins with it hangs there now.
void RadixCache::watches_after_cut(RadixNode* parent, RadixNode* child) {
  if (parent->watches.empty()) return;
  const TokenQuery edge{child->tokens};
  std::vector<PrefixWatch*> concerned;
  for (auto it = parent->watches.lower_bound(edge); it != parent->watches.end(); ++it) {
    if (common_rows(edge, *it) < static_cast<int64_t>(edge.tokens.size())) break;
    concerned.push_back(it->watch);
  }
  for (PrefixWatch* watch : concerned) unhang(*watch, /*leaves=*/false);
  hang_again(concerned, parent, 0);
}

// `child` has left the tree. What it matched further than its nearest sibling does now matches as far as that one.
void RadixCache::watches_after_removal(RadixNode* parent, RadixNode* child) {
  const std::vector<PrefixWatch*> below = unhang_all(child);
  if (!parent->watches.empty()) {
    const TokenQuery edge{child->tokens};
    const int64_t rows_left = nearest_child(parent, edge.tokens, /*committed_only=*/false).second;
    const auto loses = [&](const WatchEntry& entry) {
      if (common_rows(edge, entry) <= rows_left) return false;
      set_matched(*entry.watch, parent->end + rows_left, 0);
      return true;
    };
    const auto place = parent->watches.lower_bound(edge);
    for (auto it = place; it != parent->watches.end() && loses(*it); ++it) {
    }
    for (auto it = place; it != parent->watches.begin() && loses(*std::prev(it)); --it) {
    }
  }
  hang_again(below, parent, 0);
}

void RadixCache::visit_watches(const std::function<bool(PrefixWatch&)>& visit) const {
  TM_CHECK(options_.weigh_watches);
  struct Open {
    const RadixNode* node;  // null: above the roots
    OrderedChunks<WatchesBelow::Branch>::const_iterator next;
  };
  std::vector<Open> path = {{nullptr, branches_.begin()}};
  while (!path.empty()) {
    Open& open = path.back();
    const auto& branches = open.node ? open.node->below->branches : branches_;
    if (open.next != branches.end()) {
      const RadixNode* child = open.next->node;
      ++open.next;
      path.push_back({child, child->below->branches.begin()});
      continue;
    }
    if (open.node) {
      for (const WatchesBelow::Own& own : open.node->below->own) {
        if (!visit(*own.watch)) return;
      }
    }
    path.pop_back();
  }
}

}  // namespace tokenmill
