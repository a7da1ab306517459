// Waiting sequences hang on the tree. Each hangs at the deepest node that is a whole prefix of its tokens, filed under
// its next token there, so a change at a node concerns only the few that go the same way.
#include <algorithm>

#include "base/check.h"
#include "cache/radix_cache.h"

namespace tokenmill {
namespace {

void append_list(PrefixWatch* head, std::vector<PrefixWatch*>& out) {
  for (; head; head = head->next) out.push_back(head);
}

}  // namespace

void RadixCache::watch(const std::string& name, PrefixWatch& watch) {
  TM_CHECK(watch.node == nullptr);
  watch.matched = 0;
  if (enabled()) hang(watch, root(name));
}

void RadixCache::unwatch(PrefixWatch& watch) {
  if (watch.node) unhang(watch);
  watch.node = watch.branch = nullptr;
  if (watch.changed) std::erase(changed_watches_, &watch);
  watch.changed = false;
}

int64_t RadixCache::uncommitted_tokens(const PrefixWatch& watch) const {
  if (!watch.node) return 0;
  RadixNode* committed = watch.node;
  while (committed->pending_step) committed = committed->parent;
  if (committed == watch.node && (!watch.branch || !watch.branch->pending_step)) return 0;
  Place place = descend(committed, watch.tokens, /*committed_only=*/true);
  return watch.matched - (place.node->end + place.rows);
}

std::vector<PrefixWatch*> RadixCache::take_changed_watches() {
  std::vector<PrefixWatch*> changed;
  changed.swap(changed_watches_);
  for (PrefixWatch* watch : changed) watch->changed = false;
  return changed;
}

void RadixCache::hang(PrefixWatch& watch, RadixNode* from) {
  Place place = descend(from, watch.tokens, /*committed_only=*/false);
  watch.node = place.node;
  watch.branch = place.branch;
  watch.matched = place.node->end + place.rows;
  const auto end = static_cast<size_t>(place.node->end);
  watch.next_token = end < watch.tokens.size() ? watch.tokens[end] : -1;
  PrefixWatch*& head = place.node->watches[watch.next_token];
  watch.previous = nullptr;
  watch.next = head;
  if (head) head->previous = &watch;
  head = &watch;
}

void RadixCache::unhang(PrefixWatch& watch) {
  if (watch.next) watch.next->previous = watch.previous;
  if (watch.previous) {
    watch.previous->next = watch.next;
  } else {
    auto it = watch.node->watches.find(watch.next_token);
    TM_CHECK(it != watch.node->watches.end() && it->second == &watch);
    it->second = watch.next;
    if (!it->second) watch.node->watches.erase(it);
  }
  watch.previous = watch.next = nullptr;
}

void RadixCache::rehang(std::span<PrefixWatch* const> watches, RadixNode* from) {
  for (PrefixWatch* watch : watches) {
    int64_t before = watch->matched;
    unhang(*watch);
    hang(*watch, from);
    if (watch->matched == before || watch->changed) continue;
    watch->changed = true;
    changed_watches_.push_back(watch);
  }
}

void RadixCache::watches_after_add(RadixNode* parent, RadixNode* child) {
  auto it = parent->watches.find(child->tokens[0]);
  if (it == parent->watches.end()) return;
  std::vector<PrefixWatch*> better;
  for (PrefixWatch* watch = it->second; watch; watch = watch->next) {
    int64_t rows = common_prefix(child->tokens, watch->tokens.subspan(parent->end));
    if (rows > watch->matched - parent->end) better.push_back(watch);
  }
  rehang(better, parent);
}

// `child` was cut in two: those that matched it in part may now have matched the upper part whole.
void RadixCache::watches_after_split(RadixNode* parent, RadixNode* upper, RadixNode* child) {
  auto it = parent->watches.find(upper->tokens[0]);
  if (it == parent->watches.end()) return;
  std::vector<PrefixWatch*> concerned;
  for (PrefixWatch* watch = it->second; watch; watch = watch->next) {
    if (watch->branch == child) concerned.push_back(watch);
  }
  rehang(concerned, parent);
}

// `child` became shorter or left the tree.
void RadixCache::watches_after_loss(RadixNode* parent, RadixNode* child) {
  std::vector<PrefixWatch*> concerned;
  for (auto& [token, head] : child->watches) append_list(head, concerned);
  auto it = parent->watches.find(child->tokens[0]);
  if (it != parent->watches.end()) {
    for (PrefixWatch* watch = it->second; watch; watch = watch->next) {
      if (watch->branch == child) concerned.push_back(watch);
    }
  }
  rehang(concerned, parent);
}

}  // namespace tokenmill
