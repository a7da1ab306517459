// Where the hub is, where its cache is and who asks: huggingface_hub's environment variables, read anew at each call
// (https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables).
#pragma once

#include <string>

namespace tokenmill {

struct HubSettings {
  std::string endpoint;          // HF_ENDPOINT, without a slash at its end
  std::string cache;             // download_dir, HF_HUB_CACHE, HF_HOME/hub or ~/.cache/huggingface/hub
  std::string token;             // HF_TOKEN, or the file at HF_TOKEN_PATH or HF_HOME/token; "": none
  bool offline = false;          // HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE
  bool show_bar = true;          // unless HF_HUB_DISABLE_PROGRESS_BARS
  long metadata_timeout_s = 10;  // HF_HUB_ETAG_TIMEOUT: to answer
  long download_timeout_s = 10;  // HF_HUB_DOWNLOAD_TIMEOUT: without a byte
};

HubSettings read_hub_settings(const std::string& download_dir);

}  // namespace tokenmill
