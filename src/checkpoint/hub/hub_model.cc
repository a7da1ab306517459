#include "checkpoint/hub/hub_model.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "checkpoint/hub/hub_download.h"
#include "checkpoint/hub/hub_files.h"
#include "checkpoint/hub/hub_progress.h"
#include "checkpoint/load_error.h"

namespace tokenmill {
namespace {

using Clock = std::chrono::steady_clock;

class HubModel {
 public:
  HubModel(const HubId& id, const CheckpointOptions& options)
      : id_(id),
        options_(options),
        settings_(read_hub_settings(options.download_dir)),
        cache_(settings_.cache, id.repo),
        revision_(options.revision.empty() ? "main" : options.revision) {
    if (!is_inside_path(revision_))
      fail_load(id.repo, "revision must be a branch, a tag or a commit, not " + quote(revision_));
  }

  ModelPath resolve() {
    std::string why;
    if (settings_.offline || is_commit_hash(revision_)) {
      if (auto cached = find_cached(why)) return *cached;
      if (settings_.offline) fail_not_cached(why, "HF_HUB_OFFLINE is set; unset it to download the model");
    }
    try {
      return download();
    } catch (const HubUnreachable& unreachable) {
      if (auto cached = find_cached(why)) {
        warn(std::string(unreachable.what()) + "; the copy in the cache is used");
        return *cached;
      }
      fail_not_cached(why, unreachable.what());
    }
  }

 private:
  const std::function<bool()>* keep_going() const { return options_.keep_going ? &options_.keep_going : nullptr; }
  HubWant want() const { return options_.tokenizer_only ? HubWant::kTokenizer : HubWant::kModel; }

  ModelPath path_of(const std::string& commit, const HubChoice& choice) const {
    const std::string folder = cache_.snapshot(commit).string();
    return choice.gguf.empty() ? ModelPath{folder, false} : ModelPath{folder + "/" + choice.gguf, true};
  }

  // nullopt, and why, where the cache has not all that the model needs.
  std::optional<ModelPath> find_cached(std::string& why) const {
    const std::string commit = cache_.find_commit(revision_);
    if (commit.empty()) return std::nullopt;
    const std::vector<std::string> names = cache_.list(commit);
    try {
      const HubChoice choice = choose_hub_files(id_, names, options_.load_format, want());
      if (!choice.index.empty()) {
        for (const std::string& shard : index_shards((cache_.snapshot(commit) / choice.index).string())) {
          if (std::binary_search(names.begin(), names.end(), shard)) continue;
          why = "its snapshot lacks " + quote(shard);
          return std::nullopt;
        }
      }
      return path_of(commit, choice);
    } catch (const Error& error) {
      if (names.empty()) return std::nullopt;
      why = error.what();
      return std::nullopt;
    }
  }

  [[noreturn]] void fail_not_cached(const std::string& why, const std::string& remedy) const {
    fail_load(id_.repo,
              "revision " + quote(revision_) + " is not, or not whole, in the Hugging Face cache " + settings_.cache +
                  (why.empty() ? "" : " (" + why + ")") + ", and there is no such local path: " + remedy,
              ErrorKind::kRuntime);
  }

  ModelPath download() {
    HubApi api(settings_, id_.repo, keep_going());
    const HubListing listing = api.list(revision_);
    std::vector<std::string> names;
    for (const HubFile& file : listing.files) names.push_back(file.name);
    const HubChoice choice = choose_hub_files(id_, names, options_.load_format, want());
    fetch(listing, choice.files);
    if (!choice.index.empty()) fetch(listing, index_shards((cache_.snapshot(listing.commit) / choice.index).string()));
    // Last: who reads a ref finds a whole snapshot behind it.
    cache_.write_ref(revision_, listing.commit);
    return path_of(listing.commit, choice);
  }

  void fetch(const HubListing& listing, const std::vector<std::string>& names) {
    std::vector<HubFile> files;
    int64_t bytes = 0;
    for (const std::string& name : names) {
      const auto found = std::find_if(listing.files.begin(), listing.files.end(),
                                      [&](const HubFile& file) { return file.name == name; });
      if (found == listing.files.end()) {
        fail_load(id_.repo, "lacks " + quote(name) + ", which its index names; choose another revision");
      }
      if (is_linked(listing.commit, *found)) continue;
      bytes += std::max<int64_t>(0, found->size);
      files.push_back(*found);
    }
    if (files.empty()) return;
    const auto start = Clock::now();
    const std::string what = id_.repo + " (revision " + revision_ + "): " + std::to_string(files.size()) +
                             (files.size() == 1 ? " file, " : " files, ") + bytes_text(bytes);
    log("Downloading " + what);
    HubLog to_log = [this](const std::string& line) { log(line); };
    HubProgressView view(settings_.show_bar && !options_.on_download, to_log);
    const HubJob job{.settings = settings_,
                     .cache = cache_,
                     .repo = id_.repo,
                     .commit = listing.commit,
                     .on_progress =
                         [&](const DownloadProgress& progress) {
                           view.show(progress);
                           if (options_.keep_going && !options_.keep_going()) return false;
                           return !options_.on_download || options_.on_download(progress);
                         },
                     .log = to_log,
                     .keep_going = keep_going()};
    download_hub_files(job, std::move(files));
    const auto tenths = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - start).count() / 100;
    log("Downloaded " + what + " in " + std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " s");
  }

  // Whether the snapshot has the file already, so that a start with a whole snapshot costs one question.
  bool is_linked(const std::string& commit, const HubFile& file) const {
    std::error_code error;
    const auto size = std::filesystem::file_size(cache_.snapshot(commit) / file.name, error);
    return !error && (file.size < 0 || static_cast<int64_t>(size) == file.size);
  }

  void log(const std::string& line) const {
    if (options_.logger != nullptr) options_.logger->log(LogLevel::kInfo, line, false);
  }
  void warn(const std::string& line) const {
    if (options_.logger != nullptr) options_.logger->log(LogLevel::kWarning, line, false);
  }

  const HubId& id_;
  const CheckpointOptions& options_;
  HubSettings settings_;
  HubCache cache_;
  std::string revision_;
};

}  // namespace

ModelPath resolve_hub_model(const HubId& id, const CheckpointOptions& options) {
  return HubModel(id, options).resolve();
}

}  // namespace tokenmill
