#include "checkpoint/model_path.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <system_error>

#include "checkpoint/hub/hub_id.h"
#include "checkpoint/hub/hub_model.h"
#include "checkpoint/load_error.h"

namespace tokenmill {

namespace fs = std::filesystem;

namespace {

constexpr size_t kMaxFolderEntries = 100000;

bool has_suffix(const std::string& name, std::string_view suffix) { return name.ends_with(suffix); }

ModelPath resolve_folder(const std::string& folder, const CheckpointOptions& options) {
  std::vector<std::string> ggufs;
  bool has_config = false, has_safetensors = false;
  for (const std::string& name : list_files(folder)) {
    if (has_suffix(name, ".gguf")) ggufs.push_back(name);
    has_config |= name == "config.json";
    has_safetensors |= has_suffix(name, ".safetensors");
  }
  const bool wants_gguf = options.load_format == "gguf";
  const bool may_be_gguf = options.load_format == "auto" && !(has_config && has_safetensors);
  if (wants_gguf || (may_be_gguf && !ggufs.empty())) {
    if (ggufs.size() != 1) {
      fail_load(folder, "holds " + std::to_string(ggufs.size()) + " .gguf files; pass the path of the one to load");
    }
    return {folder + "/" + ggufs[0], true};
  }
  return {folder, false};
}

}  // namespace

std::vector<std::string> list_files(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  fs::directory_iterator it(folder, error);
  for (; !error && it != fs::directory_iterator(); it.increment(error)) {
    std::error_code ignored;  // a broken link is simply no regular file
    if (it->is_regular_file(ignored)) names.push_back(it->path().filename().string());
    if (names.size() > kMaxFolderEntries) fail_load(folder, "holds too many files to be a model's folder");
  }
  if (error) fail_load(folder, "cannot be listed (" + error.message() + ")");
  std::sort(names.begin(), names.end());
  return names;
}

ModelPath resolve_model_path(const std::string& path, const CheckpointOptions& options) {
  if (path.empty()) fail_load("model_path", "must not be empty; pass a folder, a .gguf file or a hub id");
  if (path.find('\0') != std::string::npos) fail_load("model_path", "must not hold a zero byte");
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (fs::is_directory(status)) {
    std::string folder = path;
    while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
    return resolve_folder(folder, options);
  }
  if (fs::is_regular_file(status)) {
    if (has_suffix(path, ".gguf") || options.load_format == "gguf") return {path, true};
    fail_load(path, "is a file, but not a .gguf file; pass the model's folder or a .gguf file");
  }
  if (fs::exists(status)) fail_load(path, "is neither a folder nor a regular file");
  if (status.type() != fs::file_type::not_found) fail_load(path, "cannot be read (" + error.message() + ")");
  if (!has_suffix(path, ".gguf") || path.find(':') != std::string::npos) {
    if (const std::optional<HubId> id = parse_hub_id(path)) return resolve_hub_model(*id, options);
  }
  fail_load(path,
            "no such file or folder; pass a folder with config.json and safetensors, a .gguf file or a hub id "
            "like org/name or org/name:Q4_K_M");
}

}  // namespace tokenmill
