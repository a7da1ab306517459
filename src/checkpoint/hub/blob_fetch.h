// One file of a repository into its blob: lock, resume, check, rename.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "checkpoint/hub/digest.h"
#include "checkpoint/hub/hub_download.h"

namespace tokenmill {

class BlobFetch {
 public:
  // bytes_done: counts what is there, given back where it turns out bad.
  BlobFetch(const HubJob& job, HubApi& api, const HubFile& file, std::atomic<int64_t>& bytes_done,
            const std::function<bool()>& keep_going);
  ~BlobFetch();
  BlobFetch(const BlobFetch&) = delete;
  BlobFetch& operator=(const BlobFetch&) = delete;

  // Throws as download_hub_files does.
  void run();

 private:
  bool is_there(const std::filesystem::path& blob) const;
  void lock(HubLock& lock);
  void open_incomplete();
  void fetch();
  HttpResponse fetch_once();
  bool start_body(const HttpResponse& response);
  bool take(std::string_view bytes);
  void restart(int64_t size);
  bool is_right();
  [[noreturn]] void fail_write(int error) const;

  const HubJob& job_;
  HubApi& api_;
  const HubFile& file_;
  std::atomic<int64_t>& bytes_done_;
  const std::function<bool()>& keep_going_;
  int fd_ = -1;
  int64_t size_ = 0;              // bytes in the incomplete file
  std::optional<Digest> digest_;  // of these; none where the etag is no hash
  int write_error_ = 0;           // errno of a write that failed
  bool too_long_ = false;         // more came than the file has
};

}  // namespace tokenmill
