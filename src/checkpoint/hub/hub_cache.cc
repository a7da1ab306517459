#include "checkpoint/hub/hub_cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <system_error>

#include "checkpoint/hub/hub_id.h"
#include "checkpoint/load_error.h"

namespace tokenmill {

namespace fs = std::filesystem;

namespace {

constexpr size_t kMaxRevisionBytes = 256;
constexpr size_t kMaxSnapshotFiles = 100000;

[[noreturn]] void fail_write(const fs::path& path, const std::error_code& error) {
  fail_load(path.string(),
            "cannot be written (" + error.message() +
                "); make room or set HF_HUB_CACHE or download_dir to a folder that can be written",
            ErrorKind::kRuntime);
}

void make_folders(const fs::path& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) fail_write(path, error);
}

std::string read_ref(const fs::path& file) {
  std::error_code error;
  if (!fs::is_regular_file(file, error)) return "";
  std::ifstream in(file, std::ios::binary);
  std::string text(kMaxRevisionBytes, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(in.gcount()));
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r' || text.back() == ' ')) text.pop_back();
  if (!is_plain_name(text)) {
    fail_load(file.string(), "must hold a commit hash; delete the folder and download the model again");
  }
  return text;
}

// Whole or not at all, for readers beside us.
void write_whole(const fs::path& path, const std::string& text) {
  const fs::path temporary = path.string() + ".tmp" + std::to_string(::getpid());
  std::ofstream out(temporary, std::ios::binary | std::ios::trunc);
  out << text;
  out.close();
  std::error_code error = out ? std::error_code() : std::error_code(errno, std::generic_category());
  if (!error) fs::rename(temporary, path, error);
  if (!error) return;
  std::error_code ignored;
  fs::remove(temporary, ignored);
  fail_write(path, error);
}

}  // namespace

HubCache::HubCache(const std::string& cache, const std::string& repo) : root_(cache) {
  std::string name = "models--" + repo;
  name.replace(name.find('/'), 1, "--");
  folder_ = fs::path(cache) / name;
  locks_ = fs::path(cache) / ".locks" / name;
}

std::string HubCache::find_commit(const std::string& revision) const {
  std::error_code error;
  if (!is_inside_path(revision)) return "";
  const std::string hash = read_ref(folder_ / "refs" / revision);
  const std::string commit = hash.empty() ? revision : hash;
  return is_plain_name(commit) && fs::is_directory(snapshot(commit), error) ? commit : "";
}

std::vector<std::string> HubCache::list(const std::string& commit) const {
  std::vector<std::string> names;
  std::error_code error;
  const fs::path root = snapshot(commit);
  fs::recursive_directory_iterator it(root, error);
  for (; !error && it != fs::recursive_directory_iterator(); it.increment(error)) {
    std::error_code ignored;
    if (it->is_regular_file(ignored)) names.push_back(it->path().lexically_relative(root).generic_string());
    if (names.size() > kMaxSnapshotFiles) fail_load(root.string(), "holds too many files to be a model's snapshot");
  }
  if (error) fail_load(root.string(), "cannot be listed (" + error.message() + ")");
  std::sort(names.begin(), names.end());
  return names;
}

void HubCache::prepare(const std::string& commit) const {
  make_folders(folder_ / "blobs");
  make_folders(snapshot(commit));
  make_folders(locks_);
}

void HubCache::write_ref(const std::string& revision, const std::string& commit) const {
  if (revision == commit) return;
  const fs::path path = folder_ / "refs" / revision;
  make_folders(path.parent_path());
  if (read_ref(path) != commit) write_whole(path, commit);
}

void HubCache::link(const std::string& commit, const std::string& file, const std::string& etag) const {
  const fs::path pointer = snapshot(commit) / file;
  make_folders(pointer.parent_path());
  const fs::path target = blob(etag).lexically_relative(pointer.parent_path());
  std::error_code error;
  if (fs::read_symlink(pointer, error) == target && fs::exists(pointer, error)) return;
  const fs::path temporary = pointer.string() + ".tmp" + std::to_string(::getpid());
  fs::remove(temporary, error);
  fs::create_symlink(target, temporary, error);
  if (error) {  // a file system without links
    error.clear();
    fs::copy_file(blob(etag), temporary, fs::copy_options::overwrite_existing, error);
  }
  if (!error) fs::rename(temporary, pointer, error);
  if (error) fail_write(pointer, error);
}

HubLock::HubLock(const fs::path& path) : path_(path.string()) {
  fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (fd_ < 0) fail_write(path, std::error_code(errno, std::generic_category()));
}

HubLock::~HubLock() { ::close(fd_); }

bool HubLock::try_lock() const {
  if (::flock(fd_, LOCK_EX | LOCK_NB) == 0) return true;
  if (errno == EWOULDBLOCK || errno == EINTR) return false;
  fail_load(path_,
            std::string("cannot be locked (") + std::strerror(errno) + "); choose a cache on another file system",
            ErrorKind::kRuntime);
}

bool is_commit_hash(const std::string& text) {
  return text.size() == 40 &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isxdigit(c) != 0; });
}

}  // namespace tokenmill
