// Page-granular memory of the CPU backend: reserved at once, touched at first use.
#pragma once

#include <cstddef>

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

}  // namespace tokenmill
