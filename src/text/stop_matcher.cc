#include "text/stop_matcher.h"

#include <algorithm>
#include <deque>
#include <string>
#include <tuple>
#include <utility>

#include "text/shim_call.h"
#include "tokenmill/error.h"

namespace tokenmill {
namespace {

struct RegexDeleter {
  void operator()(TmRegex* regex) const { tm_regex_free(regex); }
};
struct CursorDeleter {
  void operator()(TmRegexCursor* cursor) const { tm_regex_cursor_free(cursor); }
};

// Aho, Corasick: Efficient string matching (1975). Node 0 is the root; a node stands for a prefix of some string.
class StringAutomaton {
 public:
  explicit StringAutomaton(const std::vector<std::string>& strings) : nodes_(1) {
    for (const std::string& text : strings) insert(text);
    link();
  }
  int32_t next(int32_t node, uint8_t byte) const {
    while (true) {
      if (const int32_t child = find(node, byte); child >= 0) return child;
      if (node == 0) return 0;
      node = nodes_[static_cast<size_t>(node)].fail;
    }
  }
  // Bytes of the longest string that ends at this node; 0 where none does.
  int64_t match_bytes(int32_t node) const { return nodes_[static_cast<size_t>(node)].longest; }
  // Bytes of the longest suffix read that is a proper prefix of a string.
  int64_t open_bytes(int32_t node) const {
    while (node != 0 && nodes_[static_cast<size_t>(node)].children.empty())
      node = nodes_[static_cast<size_t>(node)].fail;
    return nodes_[static_cast<size_t>(node)].depth;
  }
  // The last `size` bytes on the way to this node.
  std::string text(int32_t node, int64_t size) const {
    std::string result(static_cast<size_t>(size), '\0');
    for (size_t i = result.size(); i > 0; --i) {
      result[i - 1] = static_cast<char>(nodes_[static_cast<size_t>(node)].byte);
      node = nodes_[static_cast<size_t>(node)].parent;
    }
    return result;
  }

 private:
  struct Node {
    std::vector<std::pair<uint8_t, int32_t>> children;  // sorted
    int32_t fail = 0, parent = 0;
    uint8_t byte = 0;
    int64_t depth = 0, longest = 0;
  };

  int32_t find(int32_t node, uint8_t byte) const {
    const auto& children = nodes_[static_cast<size_t>(node)].children;
    const auto at = std::lower_bound(children.begin(), children.end(), std::pair<uint8_t, int32_t>(byte, 0));
    return at != children.end() && at->first == byte ? at->second : -1;
  }
  void insert(const std::string& text) {
    int32_t node = 0;
    for (const char c : text) {
      const auto byte = static_cast<uint8_t>(c);
      int32_t child = find(node, byte);
      if (child < 0) {
        child = static_cast<int32_t>(nodes_.size());
        Node made;
        made.parent = node;
        made.byte = byte;
        made.depth = nodes_[static_cast<size_t>(node)].depth + 1;
        nodes_.push_back(std::move(made));
        auto& children = nodes_[static_cast<size_t>(node)].children;
        children.insert(std::lower_bound(children.begin(), children.end(), std::pair(byte, child)), {byte, child});
      }
      node = child;
    }
    nodes_[static_cast<size_t>(node)].longest = static_cast<int64_t>(text.size());
  }
  // Breadth first: a node's fail link leads to a shallower one, which is done by then.
  void link() {
    std::deque<int32_t> queue{0};
    while (!queue.empty()) {
      const int32_t node = queue.front();
      queue.pop_front();
      for (const auto& [byte, child] : nodes_[static_cast<size_t>(node)].children) {
        Node& target = nodes_[static_cast<size_t>(child)];
        if (node != 0) target.fail = next(nodes_[static_cast<size_t>(node)].fail, byte);
        if (target.longest == 0) target.longest = nodes_[static_cast<size_t>(target.fail)].longest;
        queue.push_back(child);
      }
    }
  }

  std::vector<Node> nodes_;
};

bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xc0) == 0x80; }

}  // namespace

struct StopPatterns::Impl {
  explicit Impl(const std::vector<std::string>& strings) : automaton(strings) {}
  bool has_strings = false;
  StringAutomaton automaton;
  std::vector<std::unique_ptr<TmRegex, RegexDeleter>> regexes;
};

StopPatterns::StopPatterns(const std::vector<std::string>& strings, const std::vector<std::string>& regexes) {
  for (const std::string& text : strings) {
    if (text.empty()) throw Error(ErrorKind::kValue, "stop must hold strings that are not empty, got ''.");
  }
  impl_ = std::make_unique<Impl>(strings);
  impl_->has_strings = !strings.empty();
  for (const std::string& pattern : regexes) {
    TmBytes error{};
    TmRegex* regex = tm_regex_compile(to_bytes(pattern), pattern.size(), &error);
    if (regex == nullptr) {
      throw Error(ErrorKind::kValue,
                  "stop_regex must be a usable pattern, got '" + pattern + "': " + take(error) + ".");
    }
    impl_->regexes.emplace_back(regex);
  }
}

StopPatterns::~StopPatterns() = default;

bool StopPatterns::empty() const { return !impl_->has_strings && impl_->regexes.empty(); }

struct StopMatcher::State {
  std::shared_ptr<const StopPatterns> patterns;
  int32_t node = 0;
  int64_t total = 0;
  int64_t regex_live_begin = 0;
  std::vector<std::unique_ptr<TmRegexCursor, CursorDeleter>> cursors;
  std::string recent;  // the end of the text, for what a regex matched; empty where there are none

  std::string_view text(int64_t begin, int64_t end) const {
    const int64_t recent_begin = total - static_cast<int64_t>(recent.size());
    begin = std::max(begin, recent_begin);
    return std::string_view(recent).substr(static_cast<size_t>(begin - recent_begin), static_cast<size_t>(end - begin));
  }
  void find_string(std::string_view bytes, std::optional<StopMatch>& best);
  void find_regex(std::string_view bytes, std::optional<StopMatch>& best);
};

namespace {

void keep_better(std::optional<StopMatch>& best, StopMatch match) {
  if (!best || std::tuple(match.end, match.begin) < std::tuple(best->end, best->begin)) best = std::move(match);
}

}  // namespace

void StopMatcher::State::find_string(std::string_view bytes, std::optional<StopMatch>& best) {
  const StringAutomaton& automaton = patterns->impl().automaton;
  bool found = false;
  for (size_t i = 0; i < bytes.size(); ++i) {
    node = automaton.next(node, static_cast<uint8_t>(bytes[i]));
    const int64_t size = automaton.match_bytes(node);
    if (size == 0 || found) continue;
    found = true;
    const int64_t end = total + static_cast<int64_t>(i) + 1;
    keep_better(best, {end - size, end, automaton.text(node, size)});
  }
}

void StopMatcher::State::find_regex(std::string_view bytes, std::optional<StopMatch>& best) {
  // `total` and `recent` include `bytes` already.
  regex_live_begin = total;
  for (const auto& cursor : cursors) {
    const TmRegexStep step = tm_regex_cursor_feed(cursor.get(), to_bytes(bytes), bytes.size());
    regex_live_begin = std::min(regex_live_begin, step.live_begin);
    if (!step.matched) continue;
    int64_t begin = std::max(step.begin, step.end - kRegexHeldBytesMax);
    std::string_view matched = text(begin, step.end);
    if (begin != step.begin) {
      while (!matched.empty() && is_continuation(matched.front())) matched.remove_prefix(1), ++begin;
    }
    keep_better(best, {begin, step.end, std::string(matched)});
  }
  regex_live_begin = std::max(regex_live_begin, total - kRegexHeldBytesMax);
}

StopMatcher::StopMatcher(std::shared_ptr<const StopPatterns> patterns) : state_(std::make_unique<State>()) {
  state_->patterns = std::move(patterns);
  for (const auto& regex : state_->patterns->impl().regexes)
    state_->cursors.emplace_back(tm_regex_cursor_new(regex.get()));
}

StopMatcher::~StopMatcher() = default;
StopMatcher::StopMatcher(StopMatcher&&) noexcept = default;

std::optional<StopMatch> StopMatcher::append(std::string_view bytes) {
  State& state = *state_;
  std::optional<StopMatch> best;
  state.find_string(bytes, best);
  state.total += static_cast<int64_t>(bytes.size());
  if (!state.cursors.empty()) {
    state.recent += bytes;
    state.find_regex(bytes, best);
    // Twice the bound before it is cut, so that cutting costs little a byte.
    const size_t keep = static_cast<size_t>(kRegexHeldBytesMax);
    if (state.recent.size() > 2 * keep) state.recent.erase(0, state.recent.size() - keep);
  }
  return best;
}

int64_t StopMatcher::held_bytes() const {
  const int64_t by_strings = state_->patterns->impl().automaton.open_bytes(state_->node);
  const int64_t by_regexes = state_->cursors.empty() ? 0 : state_->total - state_->regex_live_begin;
  return std::max(by_strings, by_regexes);
}

int64_t StopMatcher::total_bytes() const { return state_->total; }

}  // namespace tokenmill
