// Memory from the system: what a PageVector holds, and that its pages go back when it ends.
#include "base/page_memory.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <numeric>
#include <utility>

namespace tokenmill::testing {
namespace {

bool is_mapped(const void* address) {
  unsigned char resident = 0;
  void* const page = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(address) / 4096 * 4096);
  return mincore(page, 1, &resident) == 0;
}

TEST(PageVector, GrowsFromTheHeapIntoMappings) {
  PageVector<int32_t> values;
  for (int32_t i = 0; i < 100'000; ++i) values.push_back(i);
  EXPECT_EQ(std::accumulate(values.begin(), values.end(), int64_t{0}), int64_t{99'999} * 100'000 / 2);
  const PageVector<int32_t> copy = values;
  PageVector<int32_t> moved = std::move(values);
  EXPECT_EQ(copy, moved);
  moved.resize(10);
  moved.shrink_to_fit();
  EXPECT_EQ(moved, PageVector<int32_t>(copy.begin(), copy.begin() + 10));
}

TEST(PageVector, WhatIsLargeIsUnmappedWithIt) {
  const void* address = nullptr;
  {
    const PageVector<std::byte> large(PageAllocator<std::byte>::kMappedBytesMin);
    address = large.data();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(address) % 4096, 0u);
    EXPECT_TRUE(is_mapped(address));
  }
  EXPECT_FALSE(is_mapped(address));
}

TEST(PageVector, TooLargeIsBadAlloc) {
  PageVector<int64_t> values;
  EXPECT_THROW(values.reserve(values.max_size()), std::bad_alloc);
  EXPECT_THROW(PageAllocator<int64_t>().allocate(SIZE_MAX / 8), std::bad_alloc);
}

TEST(PageMemory, IsZeroAndMoves) {
  PageMemory memory(10'000, /*huge_pages=*/false);
  for (size_t i = 0; i < memory.size(); ++i) ASSERT_EQ(memory.data()[i], std::byte{0});
  memory.data()[9'999] = std::byte{7};
  const PageMemory moved = std::move(memory);
  EXPECT_EQ(memory.data(), nullptr);  // NOLINT(bugprone-use-after-move): what is left is told in the header
  EXPECT_EQ(moved.data()[9'999], std::byte{7});
}

}  // namespace
}  // namespace tokenmill::testing
