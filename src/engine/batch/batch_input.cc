#include "engine/batch/batch_input.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <utility>

#include "tokenmill/error.h"

namespace tokenmill {
namespace {

constexpr size_t kBufferBytes = size_t{256} << 10;

[[noreturn]] void fail(const std::string& name, const std::string& what, int error) {
  throw Error(ErrorKind::kValue, name + ": " + what + " (" + std::strerror(error) + ")");
}

void write_all(int fd, const char* data, size_t size) {
  while (size > 0) {
    const ssize_t written = ::write(fd, data, size);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) fail("temporary copy of the input", "cannot be written; set TMPDIR to a folder with room", errno);
    data += written;
    size -= static_cast<size_t>(written);
  }
}

int make_temporary_file() {
  const char* folder = std::getenv("TMPDIR");
  std::string path = std::string(folder != nullptr && *folder != '\0' ? folder : "/tmp") + "/tokenmill-batch-XXXXXX";
  const int fd = ::mkostemp(path.data(), O_CLOEXEC);
  if (fd < 0) fail(path, "a temporary copy of the input cannot be made; set TMPDIR to a writable folder", errno);
  ::unlink(path.c_str());
  return fd;
}

bool is_blank(std::string_view text) { return text.find_first_not_of(" \t\r") == std::string_view::npos; }

}  // namespace

BatchInput::BatchInput(const std::string& path) : name_(path == "-" ? "standard input" : path), buffer_(kBufferBytes) {
  fd_ = path == "-" ? ::fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 0) : ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd_ < 0) fail(name_, "cannot be opened", errno);
  try {
    struct stat status = {};
    if (::fstat(fd_, &status) != 0) fail(name_, "cannot be read", errno);
    if (S_ISDIR(status.st_mode)) throw Error(ErrorKind::kValue, name_ + ": is a folder; give a file of JSON lines.");
    if (S_ISREG(status.st_mode)) {
      size_ = status.st_size;
    } else {
      spool();
    }
  } catch (...) {
    ::close(fd_);
    throw;
  }
}

BatchInput::~BatchInput() { ::close(fd_); }

void BatchInput::spool() {
  const int copy = make_temporary_file();
  try {
    while (true) {
      const ssize_t count = ::read(fd_, buffer_.data(), buffer_.size());
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) fail(name_, "cannot be read", errno);
      if (count == 0) break;
      write_all(copy, buffer_.data(), static_cast<size_t>(count));
      size_ += count;
    }
  } catch (...) {
    ::close(copy);
    throw;
  }
  ::close(std::exchange(fd_, copy));
}

void BatchInput::rewind() {
  offset_ = 0;
  begin_ = end_ = 0;
  line_number_ = 0;
  index_ = -1;
}

int64_t BatchInput::count() {
  rewind();
  std::string line;
  while (next(line)) {
  }
  const int64_t lines = index_ + 1;
  rewind();
  return lines;
}

// False at the end of what is to be read.
bool BatchInput::fill() {
  const auto wanted = static_cast<size_t>(std::min<int64_t>(size_ - offset_, static_cast<int64_t>(buffer_.size())));
  begin_ = end_ = 0;
  while (wanted > 0) {
    const ssize_t count = ::pread(fd_, buffer_.data(), wanted, offset_);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(name_, "cannot be read", errno);
    offset_ += count;
    end_ = static_cast<size_t>(count);
    return count > 0;
  }
  return false;
}

bool BatchInput::read_line(std::string& line) {
  line.clear();
  too_long_ = false;
  bool any = false;
  while (begin_ < end_ || fill()) {
    any = true;
    const char* start = buffer_.data() + begin_;
    const auto* newline = static_cast<const char*>(std::memchr(start, '\n', end_ - begin_));
    const size_t count = newline == nullptr ? end_ - begin_ : static_cast<size_t>(newline - start);
    const size_t kept = std::min(count, kLineBytesMax - line.size());
    line.append(start, kept);
    too_long_ |= kept < count;
    begin_ += count + (newline == nullptr ? 0 : 1);
    if (newline != nullptr) break;
  }
  line_number_ += any ? 1 : 0;
  return any;
}

bool BatchInput::next(std::string& line) {
  while (read_line(line)) {
    if (is_blank(line)) continue;
    ++index_;
    return true;
  }
  return false;
}

}  // namespace tokenmill
