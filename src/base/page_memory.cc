#include "base/page_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>

#include "tokenmill/error.h"

namespace tokenmill {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

size_t page_bytes() {
  static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

uintptr_t round_up(uintptr_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace

void throw_not_enough_memory(size_t bytes) {
  char wanted[32];
  std::snprintf(wanted, sizeof(wanted), "%.2f GB", static_cast<double>(bytes) / (1 << 30));
  throw Error(ErrorKind::kRuntime,
              std::string("Not enough memory. Please try to increase mem_fraction_static or reduce "
                          "max_total_tokens or max_running_requests (") +
                  wanted + " could not be reserved).");
}

PageMemory::PageMemory(size_t bytes, bool huge_pages) {
  if (bytes > SIZE_MAX / 2) throw_not_enough_memory(bytes);
  const bool huge = huge_pages && bytes >= kHugePage;
  const size_t rounded = round_up(bytes == 0 ? 1 : bytes, page_bytes());
  const size_t mapping_bytes = rounded + (huge ? kHugePage : 0);
  void* const mapping =
      mmap(nullptr, mapping_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) throw_not_enough_memory(bytes);
  mapping_ = mapping;
  mapping_bytes_ = mapping_bytes;
  bytes_ = bytes;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(mapping);
  data_ = reinterpret_cast<std::byte*>(huge ? round_up(begin, kHugePage) : begin);
  if (huge) madvise(data_, rounded, MADV_HUGEPAGE);  // advice: where it is refused small pages serve as well
}

PageMemory::~PageMemory() {
  if (mapping_ != nullptr) munmap(mapping_, mapping_bytes_);
}

PageMemory::PageMemory(PageMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      mapping_(std::exchange(other.mapping_, nullptr)),
      mapping_bytes_(std::exchange(other.mapping_bytes_, 0)) {}

PageMemory& PageMemory::operator=(PageMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(mapping_, other.mapping_);
  std::swap(mapping_bytes_, other.mapping_bytes_);
  return *this;
}

void release_whole_pages(std::byte* memory, size_t bytes) {
  const uintptr_t begin = round_up(reinterpret_cast<uintptr_t>(memory), page_bytes());
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / page_bytes() * page_bytes();
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

void* map_pages(size_t bytes) {
  void* const mapping = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  return mapping;
}

void unmap_pages(void* mapping, size_t bytes) noexcept { munmap(mapping, bytes); }

}  // namespace tokenmill
