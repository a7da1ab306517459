// Memory straight from the system: reserved at once, touched at first use, given back when it is freed.
//
// malloc() keeps what is freed in a thread's heap, and freeing one large block makes it put blocks up to that size
// there from then on. So what is large and ends with its engine is mapped by itself.
#pragma once

#include <cstddef>
#include <limits>
#include <new>
#include <vector>

namespace tokenmill {

// Throws Error(kRuntime) "Not enough memory. …" with the size that was wanted.
[[noreturn]] void throw_not_enough_memory(size_t bytes);

// Zero-filled pages, aligned to a page, or to 2 MiB where huge pages are asked for: then the kernel is advised to back
// them with transparent huge pages (weights, which are streamed whole). KV pools stay with small pages, so that a small
// job touches little. Throws as above.
class PageMemory {
 public:
  PageMemory() = default;
  PageMemory(size_t bytes, bool huge_pages);
  ~PageMemory();
  PageMemory(PageMemory&& other) noexcept;
  PageMemory& operator=(PageMemory&& other) noexcept;

  std::byte* data() const { return data_; }
  size_t size() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
  void* mapping_ = nullptr;
  size_t mapping_bytes_ = 0;
};

// Gives back the whole pages inside the range; what they held is lost, reading them gives zeros. Only for private
// anonymous memory.
void release_whole_pages(std::byte* memory, size_t bytes);

void* map_pages(size_t bytes);  // throws std::bad_alloc
void unmap_pages(void* mapping, size_t bytes) noexcept;

// For containers whose elements own nothing (a leak checker does not look into mappings): small ones are malloc's.
template <class T>
struct PageAllocator {
  using value_type = T;
  static constexpr size_t kMappedBytesMin = size_t{64} << 10;

  PageAllocator() = default;
  template <class U>
  PageAllocator(const PageAllocator<U>&) {}  // NOLINT(google-explicit-constructor): as containers want it

  T* allocate(size_t count) {
    if (count > std::numeric_limits<size_t>::max() / 2 / sizeof(T)) throw std::bad_array_new_length();
    const size_t bytes = count * sizeof(T);
    return static_cast<T*>(bytes < kMappedBytesMin ? ::operator new(bytes) : map_pages(bytes));
  }
  void deallocate(T* data, size_t count) noexcept {
    const size_t bytes = count * sizeof(T);
    if (bytes < kMappedBytesMin) {
      ::operator delete(data);
    } else {
      unmap_pages(data, bytes);
    }
  }
  friend bool operator==(const PageAllocator&, const PageAllocator&) { return true; }
};

template <class T>
using PageVector = std::vector<T, PageAllocator<T>>;

}  // namespace tokenmill
