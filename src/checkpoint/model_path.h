// From what a user calls a model (a folder, a .gguf file, a hub id) to a folder or file on this machine.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"

namespace tokenmill {

struct ModelPath {
  std::string path;
  bool is_gguf = false;  // a file; else a folder
};

// Downloads a model that a hub id names. Throws Error that says how to get a model that is not here.
ModelPath resolve_model_path(const std::string& path, const CheckpointOptions& options);

// Names of the regular files in a folder, sorted. Throws Error(kValue) where it cannot be read.
std::vector<std::string> list_files(const std::string& folder);

}  // namespace tokenmill
