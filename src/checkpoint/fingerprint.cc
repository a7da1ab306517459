#include "checkpoint/fingerprint.h"

#include <sys/stat.h>

#include <filesystem>
#include <string_view>

#include "base/content_hash.h"
#include "base/mapped_file.h"
#include "checkpoint/load_error.h"
#include "checkpoint/model_path.h"

namespace tokenmill {
namespace {

// Each text with its length, so that no two lists of texts read alike.
void add_text(ContentHash& hash, std::string_view text) {
  hash.update(std::to_string(text.size()) + ':');
  hash.update(text);
}

}  // namespace

ModelFiles::File ModelFiles::look(const std::string& name, const std::string& path) {
  struct stat facts = {};
  if (::stat(path.c_str(), &facts) != 0) fail_load(path, "was there a moment ago and is gone");
  return {.name = name,
          .path = path,
          .device = facts.st_dev,
          .inode = facts.st_ino,
          .size = facts.st_size,
          .modified_ns = int64_t{facts.st_mtim.tv_sec} * 1'000'000'000 + facts.st_mtim.tv_nsec};
}

ModelFiles::ModelFiles(const Checkpoint& checkpoint, const CheckpointOptions& options) {
  const std::string& path = checkpoint.resolved_path();
  const bool dummy = checkpoint.format() == "dummy";
  overrides_ = options.model_override_json + (dummy ? " dummy " + std::to_string(options.dummy_seed) : "");
  if (!std::filesystem::is_directory(path)) {
    files_.push_back(look("", path));
    return;
  }
  for (const std::string& name : list_files(path)) {
    const bool weights = name.ends_with(".safetensors") || name.ends_with(".gguf");
    if (name == "config.json" || (weights && !dummy)) files_.push_back(look(name, path + "/" + name));
  }
}

void ModelFiles::require_unchanged() const {
  for (const File& file : files_) {
    const bool there = std::filesystem::exists(file.path);
    if (there && look(file.name, file.path) == file) continue;
    throw Error(ErrorKind::kRuntime, "The model's file " + file.path +
                                         " has changed since this engine loaded it, so that what the engine computes "
                                         "cannot be told by it. Make a new Engine.");
  }
}

std::string ModelFiles::fingerprint() const {
  if (files_.empty()) throw Error(ErrorKind::kRuntime, "This engine's model comes from no files.");
  require_unchanged();
  ContentHash hash;
  add_text(hash, overrides_);
  for (const File& file : files_) {
    const MappedFile mapped(file.path);
    add_text(hash, file.name);
    add_text(hash, {reinterpret_cast<const char*>(mapped.bytes().data()), mapped.size()});
  }
  require_unchanged();
  return hash.finish();
}

}  // namespace tokenmill
