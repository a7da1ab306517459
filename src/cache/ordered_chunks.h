// An ordered set as a sorted list of sorted chunks. A place is found among the chunks' last elements, which are few and
// lie together, and then within one chunk: a set of a hundred thousand costs a few cache lines more than one of ten,
// where a tree of nodes costs one a level.
//
// Less is stateless and may compare T with other types. Iterators are valid until the next change.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <utility>
#include <vector>

namespace tokenmill {

template <typename T, typename Less = std::less<T>>
class OrderedChunks {
  using Chunk = std::vector<T>;  // sorted, at least one, at most kChunkMax

 public:
  class const_iterator {
   public:
    using iterator_category = std::bidirectional_iterator_tag;
    using value_type = T;
    using difference_type = std::ptrdiff_t;
    using pointer = const T*;
    using reference = const T&;

    const_iterator() = default;
    reference operator*() const { return (*chunks_)[chunk_][index_]; }
    pointer operator->() const { return &**this; }
    const_iterator& operator++() {
      if (++index_ == (*chunks_)[chunk_].size()) ++chunk_, index_ = 0;
      return *this;
    }
    const_iterator& operator--() {
      if (index_ == 0) index_ = (*chunks_)[--chunk_].size();
      --index_;
      return *this;
    }
    bool operator==(const const_iterator& other) const { return chunk_ == other.chunk_ && index_ == other.index_; }

   private:
    friend class OrderedChunks;
    const_iterator(const std::vector<Chunk>* chunks, size_t chunk, size_t index)
        : chunks_(chunks), chunk_(chunk), index_(index) {}
    const std::vector<Chunk>* chunks_ = nullptr;
    size_t chunk_ = 0, index_ = 0;
  };

  bool empty() const { return chunks_.empty(); }
  size_t size() const { return size_; }
  const T& front() const { return chunks_.front().front(); }
  const_iterator begin() const { return {&chunks_, 0, 0}; }
  const_iterator end() const { return {&chunks_, chunks_.size(), 0}; }

  // The first element that is not less than `key`.
  template <typename K>
  const_iterator lower_bound(const K& key) const {
    const size_t chunk = num_less(lasts_, key);
    if (chunk == lasts_.size()) return end();
    return {&chunks_, chunk, num_less(chunks_[chunk], key)};
  }
  // The first element that is greater than `key`.
  template <typename K>
  const_iterator upper_bound(const K& key) const {
    const_iterator it = lower_bound(key);
    if (it != end() && !Less()(key, *it)) ++it;
    return it;
  }
  template <typename K>
  const_iterator find(const K& key) const {
    const const_iterator it = lower_bound(key);
    return it == end() || Less()(key, *it) ? end() : it;
  }
  template <typename K>
  bool contains(const K& key) const {
    return find(key) != end();
  }

  // False: an equal element is there.
  bool insert(T item) {
    const const_iterator place = lower_bound(item);
    if (place != end() && !Less()(item, *place)) return false;
    ++size_;
    if (place != end()) {
      Chunk& items = chunks_[place.chunk_];
      items.insert(items.begin() + static_cast<std::ptrdiff_t>(place.index_), std::move(item));
      if (items.size() > kChunkMax) split(place.chunk_);
      return true;
    }
    // What comes in order fills its chunks.
    if (chunks_.empty() || chunks_.back().size() == kChunkMax) {
      chunks_.emplace_back();
      lasts_.push_back(item);
    }
    lasts_.back() = item;
    chunks_.back().push_back(std::move(item));
    return true;
  }

  // False: there is no such element.
  template <typename K>
  bool erase(const K& key) {
    const const_iterator place = find(key);
    if (place == end()) return false;
    --size_;
    Chunk& items = chunks_[place.chunk_];
    items.erase(items.begin() + static_cast<std::ptrdiff_t>(place.index_));
    if (items.empty()) {
      erase_chunk(place.chunk_);
      return true;
    }
    lasts_[place.chunk_] = items.back();
    if (items.size() < kChunkMax / 4) join(place.chunk_);
    return true;
  }

  void clear() {
    chunks_.clear();
    lasts_.clear();
    size_ = 0;
  }

 private:
  static constexpr size_t kChunkMax = 64;

  // How many of the sorted items are less than `key`.
  template <typename K>
  static size_t num_less(const std::vector<T>& items, const K& key) {
    return static_cast<size_t>(std::lower_bound(items.begin(), items.end(), key, Less()) - items.begin());
  }

  void split(size_t chunk) {
    Chunk& items = chunks_[chunk];
    const auto half = items.begin() + static_cast<std::ptrdiff_t>(items.size() / 2);
    Chunk upper(half, items.end());
    items.erase(half, items.end());
    lasts_.insert(lasts_.begin() + static_cast<std::ptrdiff_t>(chunk), items.back());
    chunks_.insert(chunks_.begin() + static_cast<std::ptrdiff_t>(chunk) + 1, std::move(upper));
  }
  // With the chunk that follows, where one holds both and has room to grow.
  void join(size_t chunk) {
    if (chunk + 1 >= chunks_.size()) return;
    Chunk& items = chunks_[chunk];
    const Chunk& more = chunks_[chunk + 1];
    if (items.size() + more.size() > kChunkMax / 2) return;
    items.insert(items.end(), more.begin(), more.end());
    lasts_[chunk] = items.back();
    erase_chunk(chunk + 1);
  }
  void erase_chunk(size_t chunk) {
    chunks_.erase(chunks_.begin() + static_cast<std::ptrdiff_t>(chunk));
    lasts_.erase(lasts_.begin() + static_cast<std::ptrdiff_t>(chunk));
  }

  std::vector<Chunk> chunks_;
  std::vector<T> lasts_;  // of each chunk, side by side
  size_t size_ = 0;
};

}  // namespace tokenmill
