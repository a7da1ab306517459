#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <utility>

#include "tokenmill/error.h"

namespace tokenmill {
namespace {

[[noreturn]] void fail(const std::string& path, const std::string& what) {
  throw Error(ErrorKind::kValue, path + ": " + what);
}

[[noreturn]] void fail_open(const std::string& path, int error) {
  if (error == ENOENT || error == ENOTDIR) fail(path, "no such file; check the path");
  if (error == EACCES || error == EPERM) fail(path, "permission denied; make the file readable for this user");
  fail(path, std::string("cannot be opened: ") + std::strerror(error));
}

// Closes the descriptor on every way out but release().
struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
  int release() { return std::exchange(fd, -1); }
};

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  if (path.find('\0') != std::string::npos) fail(path, "the path holds a zero byte; check the path");
  Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};  // a pipe must not block here
  if (file.fd < 0) fail_open(path, errno);
  struct stat status;
  if (::fstat(file.fd, &status) != 0) fail_open(path, errno);
  if (S_ISDIR(status.st_mode)) fail(path, "is a directory where a file is expected; name the file inside it");
  if (!S_ISREG(status.st_mode)) fail(path, "is not a regular file and cannot be mapped; copy it into one");
  if (status.st_size <= 0) fail(path, "is empty; download or copy it again");
  size_ = static_cast<size_t>(status.st_size);
  void* mapping = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (mapping == MAP_FAILED) {
    const int error = errno;
    size_ = 0;
    fail(path, std::string("cannot be mapped into memory: ") + std::strerror(error));
  }
  data_ = static_cast<const std::byte*>(mapping);
  fd_ = file.release();
}

MappedFile::~MappedFile() { unmap(); }

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      fd_(std::exchange(other.fd_, -1)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  if (this != &other) {
    unmap();
    path_ = std::move(other.path_);
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

void MappedFile::unmap() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
  if (fd_ >= 0) ::close(fd_);
  data_ = nullptr;
  size_ = 0;
  fd_ = -1;
}

bool MappedFile::read(const std::byte* source, std::byte* target, size_t size) const {
  while (size > 0) {
    const ssize_t got = ::pread(fd_, target, size, static_cast<off_t>(source - data_));
    if (got < 0 && errno == EINTR) continue;
    if (got == 0) errno = 0;
    if (got <= 0) return false;
    source += got;
    target += got;
    size -= static_cast<size_t>(got);
  }
  return true;
}

void MappedFile::will_need(size_t begin, size_t size) const {
  if (begin >= size_) return;
  const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t first = begin / page * page;
  const size_t last = begin + std::min(size, size_ - begin);
  // Advice only: nothing depends on its success.
  (void)::madvise(const_cast<std::byte*>(data_) + first, last - first, MADV_WILLNEED);
}

void MappedFile::release(size_t begin, size_t size) const {
  if (begin >= size_) return;
  const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t end = begin + std::min(size, size_ - begin);
  const size_t first = (begin + page - 1) / page * page;
  const size_t last = end == size_ ? (end + page - 1) / page * page : end / page * page;
  if (first >= last) return;
  (void)::madvise(const_cast<std::byte*>(data_) + first, last - first, MADV_DONTNEED);
}

void MappedFile::release(std::span<const std::byte> range) const {
  const std::less_equal<const std::byte*> at_most;
  if (range.empty() || !at_most(data_, range.data()) || !at_most(range.data() + range.size(), data_ + size_)) return;
  release(static_cast<size_t>(range.data() - data_), range.size());
}

}  // namespace tokenmill
