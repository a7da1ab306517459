#include "checkpoint/hub/blob_fetch.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <vector>

#include "checkpoint/load_error.h"

namespace tokenmill {

namespace fs = std::filesystem;

namespace {

constexpr size_t kReadBytes = size_t{1} << 20;
constexpr size_t kSha1Digits = 40, kSha256Digits = 64;
constexpr double kLockPollS = 0.2;

bool is_hash(const std::string& etag) {
  const bool hex = etag.find_first_not_of("0123456789abcdef") == std::string::npos;
  return hex && (etag.size() == kSha1Digits || etag.size() == kSha256Digits);
}

std::optional<Digest> make_digest(const HubFile& file) {
  if (!is_hash(file.etag)) return std::nullopt;
  if (file.etag.size() == kSha256Digits) return Digest(Digest::Kind::kSha256);
  Digest digest(Digest::Kind::kSha1);  // git hashes a header with the content
  digest.update("blob " + std::to_string(file.size));
  digest.update(std::string_view("\0", 1));
  return digest;
}

}  // namespace

BlobFetch::BlobFetch(const HubJob& job, HubApi& api, const HubFile& file, std::atomic<int64_t>& bytes_done,
                     const std::function<bool()>& keep_going)
    : job_(job), api_(api), file_(file), bytes_done_(bytes_done), keep_going_(keep_going) {}

BlobFetch::~BlobFetch() {
  if (fd_ >= 0) ::close(fd_);
}

void BlobFetch::fail_write(int error) const {
  fail_load(job_.repo,
            quote(file_.name) + " cannot be written to " + job_.cache.incomplete(file_.etag).string() + " (" +
                std::strerror(error) +
                "); make room or set HF_HUB_CACHE or download_dir to a folder with room: the download goes on from "
                "what has come",
            ErrorKind::kRuntime);
}

void BlobFetch::run() {
  const fs::path blob = job_.cache.blob(file_.etag);
  if (is_there(blob)) {
    bytes_done_ += file_.size;
  } else {
    HubLock held(job_.cache.lock_file(file_.etag));
    lock(held);
    if (is_there(blob)) {  // another process has fetched it meanwhile
      bytes_done_ += file_.size;
    } else {
      open_incomplete();
      fetch();
      std::error_code error;
      fs::rename(job_.cache.incomplete(file_.etag), blob, error);
      if (error) fail_write(error.value());
    }
  }
  job_.cache.link(job_.commit, file_.name, file_.etag);
}

// One of another length, which a lost power supply leaves, is fetched again.
bool BlobFetch::is_there(const fs::path& blob) const {
  std::error_code error;
  const auto size = fs::file_size(blob, error);
  return !error && static_cast<int64_t>(size) == file_.size;
}

void BlobFetch::lock(HubLock& lock) {
  bool told = false;
  while (!lock.try_lock()) {
    if (!told && job_.log) job_.log("Waiting for another download of " + job_.repo + "/" + file_.name);
    told = true;
    api_.wait(kLockPollS);
  }
}

// What an earlier download left is taken over.
void BlobFetch::open_incomplete() {
  fd_ = ::open(job_.cache.incomplete(file_.etag).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (fd_ < 0) fail_write(errno);
  digest_ = make_digest(file_);
  const int64_t there = ::lseek(fd_, 0, SEEK_END);
  if (there > file_.size) {
    restart(0);
    return;
  }
  std::vector<char> buffer(kReadBytes);
  while (size_ < there) {
    const ssize_t count =
        ::pread(fd_, buffer.data(), std::min<size_t>(buffer.size(), static_cast<size_t>(there - size_)), size_);
    if (count <= 0) {
      restart(0);
      return;
    }
    if (digest_) digest_->update(std::string_view(buffer.data(), static_cast<size_t>(count)));
    size_ += count;
    bytes_done_ += count;
  }
}

// From the beginning.
void BlobFetch::restart(int64_t size) {
  bytes_done_ -= size_;
  size_ = size;
  digest_ = make_digest(file_);
  if (::ftruncate(fd_, 0) != 0) fail_write(errno);
}

bool BlobFetch::is_right() {
  if (size_ != file_.size) return false;
  return !digest_ || digest_->finish() == file_.etag;
}

void BlobFetch::fetch() {
  bool was_wrong = false;
  for (int attempt = 0;; ++attempt) {
    const int64_t before = size_;
    HttpResponse response;
    if (size_ < file_.size) response = fetch_once();
    if (write_error_ != 0) fail_write(write_error_);
    const bool whole = size_ == file_.size && !too_long_ && response.failure == HttpResponse::Failure::kNone;
    if (whole && is_right()) return;
    if (whole || too_long_) {
      if (was_wrong) {
        fail_load(job_.repo,
                  quote(file_.name) + " came with a wrong " + (too_long_ ? "length" : "checksum") +
                      " twice (expected " + std::to_string(file_.size) + " bytes, " + file_.etag +
                      "); try again later, and check HF_ENDPOINT and any proxy",
                  ErrorKind::kRuntime);
      }
      was_wrong = true;
      too_long_ = false;
      restart(0);
      continue;
    }
    if (size_ > before) attempt = 0;  // as long as something comes
    const bool short_body =
        response.failure == HttpResponse::Failure::kNone && (response.status == 200 || response.status == 206);
    const bool bad_range = response.status == 416;
    if (bad_range) restart(0);
    if ((!is_transient(response) && !short_body && !bad_range) || attempt + 1 >= kHubAttemptsMax) {
      if (short_body) {
        response.failure = HttpResponse::Failure::kCut;
        response.message = "the transfer ended early";
      }
      api_.refuse(response, file_.name);
    }
    api_.wait(retry_delay_s(response, attempt));
  }
}

HttpResponse BlobFetch::fetch_once() {
  HttpRequest request;
  request.url = api_.file_url(file_.name, job_.commit);
  request.from = size_;
  request.keep_going = &keep_going_;
  request.on_headers = [this](const HttpResponse& response) { return start_body(response); };
  request.sink = [this](std::string_view bytes) { return take(bytes); };
  return api_.client().perform(request);
}

// A whole answer to a question for the rest: from the beginning, then.
bool BlobFetch::start_body(const HttpResponse& response) {
  if (response.status == 200 && size_ > 0) restart(0);
  if (response.status != 206) return true;
  const std::string range = response.header("content-range");
  const std::string wanted = "bytes " + std::to_string(size_) + "-";
  if (range.starts_with(wanted)) return true;
  too_long_ = true;  // not the part that was asked for
  return false;
}

bool BlobFetch::take(std::string_view bytes) {
  if (size_ + static_cast<int64_t>(bytes.size()) > file_.size) {
    too_long_ = true;
    return false;
  }
  while (!bytes.empty()) {
    const ssize_t count = ::pwrite(fd_, bytes.data(), bytes.size(), size_);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      write_error_ = count < 0 ? errno : EIO;
      return false;
    }
    if (digest_) digest_->update(bytes.substr(0, static_cast<size_t>(count)));
    size_ += count;
    bytes_done_ += count;
    bytes.remove_prefix(static_cast<size_t>(count));
  }
  return true;
}

}  // namespace tokenmill
