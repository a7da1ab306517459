// One repository's folder in the Hugging Face cache, laid out as huggingface_hub reads and writes it:
//
//   CACHE/models--ORG--NAME/refs/REVISION            the commit that a branch or tag stands for
//                          /snapshots/COMMIT/FILE    -> ../../blobs/ETAG (a link; a copy where links cannot be)
//                          /blobs/ETAG               the content; ETAG.incomplete while it is fetched
//   CACHE/.locks/models--ORG--NAME/ETAG.lock         held (flock) while ETAG is fetched
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace tokenmill {

class HubCache {
 public:
  HubCache(const std::string& cache, const std::string& repo);

  // The commit of a branch, tag or commit that is here; "" where it is not.
  std::string find_commit(const std::string& revision) const;
  std::filesystem::path snapshot(const std::string& commit) const { return folder_ / "snapshots" / commit; }
  // Names of the files of a snapshot, with folders, sorted; a link that leads nowhere does not count.
  std::vector<std::string> list(const std::string& commit) const;

  std::filesystem::path blob(const std::string& etag) const { return folder_ / "blobs" / etag; }
  std::filesystem::path incomplete(const std::string& etag) const { return folder_ / "blobs" / (etag + ".incomplete"); }
  std::filesystem::path lock_file(const std::string& etag) const { return locks_ / (etag + ".lock"); }

  // Makes the folders. Throws Error(kRuntime) naming the cache, as all that write.
  void prepare(const std::string& commit) const;
  void write_ref(const std::string& revision, const std::string& commit) const;
  void link(const std::string& commit, const std::string& file, const std::string& etag) const;
  const std::string& root() const { return root_; }

 private:
  std::string root_;
  std::filesystem::path folder_, locks_;
};

// flock on a file, as huggingface_hub's: against other processes and other threads. Released with the object.
class HubLock {
 public:
  explicit HubLock(const std::filesystem::path& path);
  ~HubLock();
  HubLock(const HubLock&) = delete;
  HubLock& operator=(const HubLock&) = delete;
  // False while another one holds it.
  bool try_lock() const;

 private:
  std::string path_;
  int fd_ = -1;
};

// "abcd…" of 40 hexadecimal digits.
bool is_commit_hash(const std::string& text);

}  // namespace tokenmill
