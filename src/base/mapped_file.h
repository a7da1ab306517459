// A file mapped read-only into memory: how checkpoints are read. Move-only; mapping and descriptor end with the object.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace tokenmill {

class MappedFile {
 public:
  // Throws Error(kValue) naming the file and the remedy: missing, a directory, not readable, empty.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  size_t size() const { return size_; }
  const std::string& path() const { return path_; }

  // Copies what lies at `source`, inside this mapping, to `target` by read calls: several threads at once do so much
  // faster than they copy from pages that are not there yet, each of which costs a fault. False where the file can no
  // longer be read so far (errno; 0: it has become shorter).
  bool read(const std::byte* source, std::byte* target, size_t size) const;

  // Asks the system to read [begin, begin + size) ahead. Ranges beyond the file are cut.
  void will_need(size_t begin, size_t size) const;
  // Gives the whole pages inside [begin, begin + size) back; the bytes stay readable (they are read from disk again).
  void release(size_t begin, size_t size) const;
  // As release, for bytes inside this mapping. Others are ignored.
  void release(std::span<const std::byte> range) const;

 private:
  void unmap();

  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  int fd_ = -1;
};

}  // namespace tokenmill
