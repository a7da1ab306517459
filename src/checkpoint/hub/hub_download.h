// Files of one commit into the cache: several at a time, each resumed where it was cut off, checked and locked.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "checkpoint/hub/hub_api.h"
#include "checkpoint/hub/hub_cache.h"
#include "tokenmill/hub.h"

namespace tokenmill {

// On the calling thread, at least ten times a second. False stops the download.
using HubProgressCallback = std::function<bool(const DownloadProgress&)>;
using HubLog = std::function<void(const std::string& line)>;

struct HubJob {
  const HubSettings& settings;
  const HubCache& cache;
  std::string repo, commit;
  HubProgressCallback on_progress;                    // may be null
  HubLog log;                                         // may be null
  const std::function<bool()>* keep_going = nullptr;  // asked on the calling thread before the transfers; may be null
};

// Throws Error naming repository, file and remedy; HubUnreachable where the network is at fault. What has come stays in
// the cache, and a later download goes on from it.
void download_hub_files(const HubJob& job, std::vector<HubFile> files);

}  // namespace tokenmill
