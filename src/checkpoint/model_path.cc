#include "checkpoint/model_path.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "checkpoint/load_error.h"

namespace tokenmill {

namespace fs = std::filesystem;

namespace {

constexpr size_t kMaxFolderEntries = 100000;
constexpr size_t kMaxRevisionBytes = 256;

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// The hub cache's folder, by the rules of huggingface_hub.
std::string hub_cache(const CheckpointOptions& options) {
  if (!options.download_dir.empty()) return options.download_dir;
  for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"}) {
    if (std::string value = environment(name); !value.empty()) return value;
  }
  if (const std::string home = environment("HF_HOME"); !home.empty()) return home + "/hub";
  if (const std::string cache = environment("XDG_CACHE_HOME"); !cache.empty()) return cache + "/huggingface/hub";
  return environment("HOME") + "/.cache/huggingface/hub";
}

bool is_name_char(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
}

// "org/name" as the hub allows it: two parts of letters, digits, '-', '_', '.', neither beginning with '.'.
bool is_hub_id(const std::string& text) {
  const size_t slash = text.find('/');
  if (slash == std::string::npos || slash == 0 || slash + 1 == text.size()) return false;
  const std::string parts[] = {text.substr(0, slash), text.substr(slash + 1)};
  return std::all_of(std::begin(parts), std::end(parts), [](const std::string& part) {
    return part.front() != '.' && std::all_of(part.begin(), part.end(), is_name_char);
  });
}

std::string read_ref(const fs::path& file) {
  std::error_code error;
  if (!fs::is_regular_file(file, error)) return "";
  std::ifstream in(file, std::ios::binary);
  std::string text(kMaxRevisionBytes, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(in.gcount()));
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r' || text.back() == ' ')) text.pop_back();
  const bool plain = !text.empty() && text.front() != '.' && std::all_of(text.begin(), text.end(), is_name_char);
  if (!plain) fail_load(file.string(), "must hold a commit hash; delete the folder and download the model again");
  return text;
}

// "" where the cache does not have it.
std::string find_snapshot(const fs::path& repo, const std::string& revision) {
  std::error_code error;
  const bool plain_revision = revision.find("..") == std::string::npos && revision.front() != '/';
  if (!plain_revision) return "";
  const std::string hash = read_ref(repo / "refs" / revision);
  const fs::path snapshot = repo / "snapshots" / (hash.empty() ? revision : hash);
  return fs::is_directory(snapshot, error) ? snapshot.string() : "";
}

std::string resolve_hub_id(const std::string& id, const CheckpointOptions& options) {
  const std::string cache = hub_cache(options);
  std::string folder = "models--" + id;
  folder.replace(folder.find('/'), 1, "--");
  const std::string revision = options.revision.empty() ? "main" : options.revision;
  std::string snapshot = find_snapshot(fs::path(cache) / folder, revision);
  if (!snapshot.empty()) return snapshot;
  const std::string flag = options.revision.empty() ? "" : " --revision " + options.revision;
  fail_load(id, "there is no such local path, and revision " + quote(revision) +
                    " of this model is not in the Hugging Face cache " + cache + "; run 'huggingface-cli download " +
                    id + flag + "' or pass a local folder or .gguf file");
}

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
  if (is_hub_id(path) && !has_suffix(path, ".gguf")) return resolve_folder(resolve_hub_id(path, options), options);
  fail_load(path,
            "no such file or folder; pass a folder with config.json and safetensors, a .gguf file or a hub id "
            "like org/name");
}

}  // namespace tokenmill
