// Models from the Hugging Face hub, in the cache that other tools share: docs/hub.md. Standard library only.
//
// An Engine whose model_path is "org/name" downloads by itself; this is for doing so beforehand, and for seeing and
// stopping it.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "tokenmill/export.h"
#include "tokenmill/log.h"

namespace tokenmill {

struct DownloadProgress {
  std::string repo = {};  // "org/name"
  int64_t bytes_done = 0, bytes_total = 0;
  int64_t files_done = 0, files_total = 0;
};

struct DownloadOptions {
  std::optional<std::string> revision = {};      // branch, tag or commit; nullopt: main
  std::optional<std::string> download_dir = {};  // the cache; nullopt: HF_HUB_CACHE, HF_HOME or the default
  std::string load_format = "auto";              // auto, safetensors, gguf, dummy (no weights)
  bool tokenizer_only = false;
  std::string log_level = "info";
  LogSink log_sink = {};  // null: stderr
  // On the calling thread, at least ten times a second; false stops the download with an Error, and what has come is
  // kept for the next one. Null: a bar where stderr is a terminal, log lines elsewhere.
  std::function<bool(const DownloadProgress&)> on_progress = {};
};

// model: "org/name", "org/name:file.gguf", "org/name:Q4_K_M", or a local path. Returns the folder or the .gguf file.
// Throws Error: kValue for what the hub refuses or has not, kUnsupported for pickled weights, kRuntime for the network
// and the disk.
TOKENMILL_API std::string download_model(const std::string& model, const DownloadOptions& options = {});

}  // namespace tokenmill
