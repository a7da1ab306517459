#include "engine/batch/batch_output.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "engine/batch/batch_record.h"
#include "tokenmill/error.h"

namespace tokenmill {
namespace {

constexpr size_t kReadBytes = size_t{256} << 10;

[[noreturn]] void fail(const std::string& path, const std::string& what, ErrorKind kind = ErrorKind::kValue) {
  throw Error(kind, path + ": " + what);
}

std::string reason(int error) { return std::string(" (") + std::strerror(error) + ")"; }

int open_file(const std::string& path, int flags) {
  const int fd = ::open(path.c_str(), flags | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (fd < 0) fail(path, "cannot be opened for writing" + reason(errno));
  return fd;
}

// The number of bytes written: all, or errno says why not.
size_t write_some(int fd, std::string_view data) {
  size_t done = 0;
  while (done < data.size()) {
    const ssize_t count = ::write(fd, data.data() + done, data.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) break;
    done += static_cast<size_t>(count);
  }
  return done;
}

// Calls take(line, offset) for each whole line; returns the offset of what is left over.
template <class Take>
int64_t for_each_line(int fd, const std::string& path, std::string& rest, Take take) {
  std::string buffer(kReadBytes, '\0');
  int64_t offset = 0, start = 0;
  rest.clear();
  while (true) {
    const ssize_t count = ::pread(fd, buffer.data(), buffer.size(), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(path, "cannot be read" + reason(errno));
    if (count == 0) return start;
    offset += count;
    std::string_view data(buffer.data(), static_cast<size_t>(count));
    for (size_t newline = data.find('\n'); newline != std::string_view::npos; newline = data.find('\n')) {
      rest.append(data.substr(0, newline));
      take(std::string_view(rest), start);
      start += static_cast<int64_t>(rest.size()) + 1;
      rest.clear();
      data.remove_prefix(newline + 1);
    }
    rest.append(data);
  }
}

// Whether a torn line may be the beginning of one of ours.
bool may_be_ours(std::string_view text) {
  for (const std::string_view begin :
       {std::string_view("{\"custom_id\":"), std::string_view("{\"index\":"), kErrorLinePrefix}) {
    const size_t common = std::min(begin.size(), text.size());
    if (text.substr(0, common) == begin.substr(0, common)) return true;
  }
  return text.find_first_not_of('\0') == std::string_view::npos;  // a lost power supply leaves zeros
}

}  // namespace

BatchOutput::BatchOutput(const std::string& path) : path_(path), fd_(open_file(path, O_RDWR)) {
  try {
    struct stat status = {};
    if (::fstat(fd_, &status) != 0) fail(path, "cannot be read" + reason(errno));
    regular_ = S_ISREG(status.st_mode);
    if (!regular_) return;
    if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) fail(path, "cannot be locked" + reason(errno));
      fail(path, "another run is writing its results to this file; wait for its end or give another output.");
    }
  } catch (...) {
    ::close(fd_);
    throw;
  }
}

BatchOutput::~BatchOutput() { ::close(fd_); }

bool BatchOutput::is_same_file(int fd) const {
  struct stat mine = {}, other = {};
  return regular_ && ::fstat(fd_, &mine) == 0 && ::fstat(fd, &other) == 0 && mine.st_dev == other.st_dev &&
         mine.st_ino == other.st_ino;
}

bool BatchOutput::has_content() const {
  struct stat status = {};
  return regular_ && ::fstat(fd_, &status) == 0 && status.st_size > 0;
}

EarlierResults BatchOutput::scan(int64_t requests_max) const {
  EarlierResults found;
  if (!regular_) return found;
  std::string rest;
  int64_t line = 0;
  found.bytes = for_each_line(fd_, path_, rest, [&](std::string_view text, int64_t offset) {
    ++line;
    const std::optional<RecordId> id = find_record_id(text);
    if (!id) {
      fail(path_, "line " + std::to_string(line) +
                      " is not a result of a batch; give another output, or choose to overwrite this one.");
    }
    if (id->index >= requests_max) {
      fail(path_, "line " + std::to_string(line) + " is the result of request " + std::to_string(id->index) +
                      " (from 0), but the input has only " + std::to_string(requests_max) +
                      "; give another output, or choose to overwrite this one.");
    }
    const auto at = static_cast<size_t>(id->index);
    if (found.done.size() <= at) {
      found.done.resize(std::max(at + 1, 2 * found.done.size()));
      found.fingerprints.resize(found.done.size());
    }
    found.done[at] = true;
    found.fingerprints[at] = id->fingerprint;
    if (found.last_index != id->index) {
      found.last_index = id->index;
      found.last_lines = 0;
      found.last_offset = offset;
    }
    ++found.last_lines;
  });
  found.file_bytes = found.bytes + static_cast<int64_t>(rest.size());
  if (line == 0 && !may_be_ours(rest)) {
    fail(path_, "does not hold results of a batch; give another output, or choose to overwrite this one.");
  }
  return found;
}

void BatchOutput::cut(int64_t bytes) {
  if (regular_ && ::ftruncate(fd_, bytes) != 0) fail(path_, "cannot be cut" + reason(errno), ErrorKind::kRuntime);
  size_ = bytes;
}

void BatchOutput::append(std::string_view lines) {
  if (write_some(fd_, lines) == lines.size()) {
    size_ += static_cast<int64_t>(lines.size());
    return;
  }
  const int error = errno;
  if (regular_ && ::ftruncate(fd_, size_) != 0) {
    // The torn line stays; the next run mends it.
  }
  fail(path_,
       "cannot be written" + reason(error) +
           (regular_ ? "; what is in it stays good: make room and run the same again to go on." : "."),
       ErrorKind::kRuntime);
}

void BatchOutput::sync() {
  if (regular_ && ::fdatasync(fd_) != 0) fail(path_, "cannot be written to disk" + reason(errno), ErrorKind::kRuntime);
}

BatchErrorFile::BatchErrorFile(std::string path) : path_(std::move(path)) {
  if (path_.empty()) return;
  const int fd = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return;
  struct stat status = {};
  char head[kErrorLinePrefix.size()];
  const bool regular = ::fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
  const ssize_t count = regular ? ::pread(fd, head, sizeof head, 0) : 0;
  ::close(fd);
  if (!regular) return;
  if (count < 0 ||
      std::string_view(head, static_cast<size_t>(count)) != kErrorLinePrefix.substr(0, static_cast<size_t>(count))) {
    fail(path_, "is no error file of a batch and would be overwritten; give another one.");
  }
  ::unlink(path_.c_str());
}

BatchErrorFile::~BatchErrorFile() {
  if (fd_ >= 0) ::close(fd_);
}

void BatchErrorFile::append(std::string_view line) {
  if (path_.empty()) return;
  if (fd_ < 0) fd_ = open_file(path_, O_WRONLY);
  if (write_some(fd_, line) != line.size()) {
    fail(path_, "cannot be written" + reason(errno), ErrorKind::kRuntime);
  }
}

std::string default_error_path(const std::string& output) {
  std::filesystem::path path(output);
  const std::string suffix = path.extension().string();
  return path.replace_extension(".errors" + suffix).string();
}

}  // namespace tokenmill
