// The requests of a batch, line by line, as often as wished, at a memory of one line.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tokenmill {

// Read only up to the size that the file had when it was opened, so every pass sees the same lines.
class BatchInput {
 public:
  // path: a file, or "-" for standard input. What is no regular file is copied to a temporary file first.
  // Throws Error(kValue) that names it.
  explicit BatchInput(const std::string& path);
  ~BatchInput();
  BatchInput(const BatchInput&) = delete;
  BatchInput& operator=(const BatchInput&) = delete;

  const std::string& name() const { return name_; }  // for messages
  int fd() const { return fd_; }
  void rewind();
  int64_t count();  // of the lines that are not blank; rewinds
  // The next line that is not blank; false at the end. A line beyond kLineBytesMax is cut there, too_long() is true.
  bool next(std::string& line);
  bool too_long() const { return too_long_; }
  int64_t line_number() const { return line_number_; }  // of the last line, from 1
  int64_t index() const { return index_; }              // of the last line among those not blank, from 0

  static constexpr size_t kLineBytesMax = size_t{64} << 20;

 private:
  void spool();
  bool fill();
  bool read_line(std::string& line);

  std::string name_;
  int fd_ = -1;
  int64_t size_ = 0, offset_ = 0;
  std::vector<char> buffer_;
  size_t begin_ = 0, end_ = 0;
  int64_t line_number_ = 0, index_ = -1;
  bool too_long_ = false;
};

// FNV-1a (Fowler, Noll, Vo), 64 bits: the same in every run, unlike std::hash.
inline uint64_t fnv1a(std::string_view text, uint64_t hash = 0xcbf29ce484222325u) {
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

}  // namespace tokenmill
