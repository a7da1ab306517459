#include "checkpoint/hub/hub_download.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <filesystem>
#include <mutex>
#include <system_error>
#include <thread>

#include "checkpoint/hub/blob_fetch.h"
#include "checkpoint/load_error.h"

namespace tokenmill {
namespace {

constexpr size_t kThreads = 8;  // as huggingface_hub
constexpr std::chrono::milliseconds kProgressPeriod(100);

std::string gigabytes(int64_t bytes) {
  const int64_t hundredths = (bytes + 9'999'999) / 10'000'000;
  const std::string rest = std::to_string(100 + hundredths % 100).substr(1);
  return std::to_string(hundredths / 100) + "." + rest + " GB";
}

// Workers that take the next file until all are done or one has failed.
class Download {
 public:
  Download(const HubJob& job, std::vector<HubFile> files) : job_(job), files_(std::move(files)) {
    keep_going_ = [this] { return !stop_.load(); };
    progress_.repo = job.repo;
    progress_.files_total = static_cast<int64_t>(files_.size());
    for (const HubFile& file : files_) progress_.bytes_total += file.size;
  }

  void run() {
    std::vector<std::thread> threads;
    const size_t count = std::min(kThreads, files_.size());
    running_ = count;
    for (size_t i = 0; i < count; ++i) threads.emplace_back([this] { work(); });
    std::exception_ptr failure = watch();
    for (std::thread& thread : threads) thread.join();
    if (!failure) failure = failure_;
    if (failure) std::rethrow_exception(failure);
  }

 private:
  void work() {
    try {
      HubApi api(job_.settings, job_.repo, &keep_going_);
      for (size_t i = next_++; i < files_.size() && !stop_; i = next_++) {
        BlobFetch(job_, api, files_[i], bytes_done_, keep_going_).run();
        ++files_done_;
      }
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!failure_) failure_ = std::current_exception();  // the first; the others were stopped by it
      stop_ = true;
    }
    const std::lock_guard lock(mutex_);
    --running_;
    ended_.notify_all();
  }

  // Tells the progress until all workers have ended; what the callback throws stops them.
  std::exception_ptr watch() {
    std::exception_ptr failure;
    std::unique_lock lock(mutex_);
    while (true) {
      const bool done = running_ == 0;
      lock.unlock();
      try {
        progress_.bytes_done = bytes_done_;
        progress_.files_done = files_done_;
        if (job_.on_progress && !failure && !stop_ && !job_.on_progress(progress_)) stop_ = true;
      } catch (...) {
        failure = std::current_exception();
        stop_ = true;
      }
      lock.lock();
      if (done) return failure;
      ended_.wait_for(lock, kProgressPeriod, [&] { return running_ == 0; });
    }
  }

  const HubJob& job_;
  std::vector<HubFile> files_;
  std::function<bool()> keep_going_;
  DownloadProgress progress_;
  std::atomic<size_t> next_{0};
  std::atomic<int64_t> bytes_done_{0}, files_done_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable ended_;
  size_t running_ = 0;
  std::exception_ptr failure_;
};

// What is still to come must fit; better told now than after an hour.
void check_space(const HubJob& job, const std::vector<HubFile>& files) {
  int64_t missing = 0;
  std::error_code error;
  for (const HubFile& file : files) {
    if (std::filesystem::exists(job.cache.blob(file.etag), error)) continue;
    const auto there = std::filesystem::file_size(job.cache.incomplete(file.etag), error);
    missing += std::max<int64_t>(0, file.size - (error ? 0 : static_cast<int64_t>(there)));
  }
  const auto space = std::filesystem::space(job.cache.root(), error);
  if (error || missing <= static_cast<int64_t>(std::min<uintmax_t>(space.available, INT64_MAX))) return;
  fail_load(job.repo,
            "needs " + gigabytes(missing) + " more in " + job.cache.root() + ", which has " +
                gigabytes(static_cast<int64_t>(space.available)) +
                " left; make room or set HF_HUB_CACHE or download_dir to a folder with room",
            ErrorKind::kRuntime);
}

}  // namespace

void download_hub_files(const HubJob& job, std::vector<HubFile> files) {
  job.cache.prepare(job.commit);
  HubApi api(job.settings, job.repo, job.keep_going);
  for (HubFile& file : files) api.complete(file, job.commit);
  check_space(job, files);
  // Small ones first: weights that are whole mean that all the rest is there.
  std::sort(files.begin(), files.end(), [](const HubFile& a, const HubFile& b) { return a.size < b.size; });
  Download(job, std::move(files)).run();
}

}  // namespace tokenmill
