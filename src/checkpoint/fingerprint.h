// Which model this is, by its files: what a saved prefix is keyed by.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"

namespace tokenmill {

// The files that a model was loaded from, and which they were then.
class ModelFiles {
 public:
  ModelFiles() = default;  // a model that comes from no files
  // Notes the files of an open checkpoint as they are now. Throws Error(kValue) where one is gone.
  ModelFiles(const Checkpoint& checkpoint, const CheckpointOptions& options);

  // ContentHash of all that decides what the model computes: every byte of configuration and weight files, and the
  // overrides; reads the whole model. Throws Error(kRuntime) naming the file where one is no longer what was loaded,
  // and where there are no files.
  std::string fingerprint() const;

 private:
  struct File {
    std::string name, path;  // name: in the fingerprint
    uint64_t device = 0, inode = 0;
    int64_t size = 0, modified_ns = 0;
    bool operator==(const File&) const = default;
  };
  static File look(const std::string& name, const std::string& path);
  void require_unchanged() const;

  std::vector<File> files_;
  std::string overrides_;
};

}  // namespace tokenmill
