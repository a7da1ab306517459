// MappedFile::read: any part of the file, by several threads at once, and what it says of a file that has shrunk.
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "base/mapped_file.h"
#include "util/temp_folder.h"

namespace tokenmill::testing {
namespace {

std::string random_bytes(size_t count) {
  std::string bytes(count, '\0');
  uint64_t state = 1;
  for (char& byte : bytes)
    byte = static_cast<char>((state = state * 6364136223846793005u + 1442695040888963407u) >> 56);
  return bytes;
}

TEST(MappedFileRead, GivesWhatIsMapped) {
  const TempFolder folder;
  const std::string content = random_bytes(300'001);
  folder.write("file", content);
  MappedFile opened(folder.path() + "/file");
  const MappedFile file = std::move(opened);  // the descriptor moves along
  std::vector<std::thread> threads;
  std::vector<int> right(8);
  for (size_t t = 0; t < right.size(); ++t) {
    threads.emplace_back([&, t] {
      for (size_t begin = t * 31; begin < content.size(); begin += 40'009) {
        const size_t size = std::min<size_t>(50'000, content.size() - begin);
        std::vector<std::byte> out(size);
        if (!file.read(file.bytes().data() + begin, out.data(), size)) return;
        if (std::memcmp(out.data(), content.data() + begin, size) != 0) return;
      }
      right[t] = 1;
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const int one : right) EXPECT_EQ(one, 1);
  EXPECT_TRUE(file.read(file.bytes().data(), nullptr, 0));
}

TEST(MappedFileRead, TellsOfAFileThatHasBecomeShorter) {
  const TempFolder folder;
  folder.write("file", random_bytes(10'000));
  const MappedFile file(folder.path() + "/file");
  std::filesystem::resize_file(folder.path() + "/file", 5'000);
  std::vector<std::byte> out(10'000);
  EXPECT_TRUE(file.read(file.bytes().data(), out.data(), 5'000));
  errno = EIO;
  EXPECT_FALSE(file.read(file.bytes().data(), out.data(), 10'000));
  EXPECT_EQ(errno, 0);
}

}  // namespace
}  // namespace tokenmill::testing
