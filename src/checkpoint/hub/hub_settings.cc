#include "checkpoint/hub/hub_settings.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <fstream>
#include <iterator>

namespace tokenmill {
namespace {

constexpr const char* kDefaultEndpoint = "https://huggingface.co";
constexpr size_t kTokenBytesMax = 4096;

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

bool is_set(const char* name) {
  std::string value = environment(name);
  std::transform(value.begin(), value.end(), value.begin(), [](unsigned char c) { return std::toupper(c); });
  return value == "1" || value == "ON" || value == "YES" || value == "TRUE";
}

long seconds(const char* name, long otherwise) {
  const std::string value = environment(name);
  char* end = nullptr;
  const long parsed = std::strtol(value.c_str(), &end, 10);
  return value.empty() || *end != '\0' || parsed < 1 ? otherwise : parsed;
}

std::string home() {
  if (std::string folder = environment("HF_HOME"); !folder.empty()) return folder;
  if (const std::string cache = environment("XDG_CACHE_HOME"); !cache.empty()) return cache + "/huggingface";
  return environment("HOME") + "/.cache/huggingface";
}

std::string trimmed(std::string text) {
  const auto is_space = [](unsigned char c) { return std::isspace(c) != 0; };
  text.erase(std::find_if_not(text.rbegin(), text.rend(), is_space).base(), text.end());
  text.erase(text.begin(), std::find_if_not(text.begin(), text.end(), is_space));
  return text;
}

std::string find_token() {
  if (is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN")) return "";
  for (const char* name : {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}) {
    if (std::string token = trimmed(environment(name)); !token.empty()) return token;
  }
  std::string path = environment("HF_TOKEN_PATH");
  if (path.empty()) path = home() + "/token";
  std::ifstream file(path, std::ios::binary);
  std::string text(kTokenBytesMax, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(std::max<std::streamsize>(file.gcount(), 0)));
  text = trimmed(text);
  // A header must stay one line.
  return std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isgraph(c) != 0; }) ? text : "";
}

std::string find_cache(const std::string& download_dir) {
  if (!download_dir.empty()) return download_dir;
  for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"}) {
    if (std::string value = environment(name); !value.empty()) return value;
  }
  return home() + "/hub";
}

}  // namespace

HubSettings read_hub_settings(const std::string& download_dir) {
  HubSettings settings;
  settings.endpoint = environment("HF_ENDPOINT");
  while (settings.endpoint.ends_with('/')) settings.endpoint.pop_back();
  if (settings.endpoint.empty()) settings.endpoint = kDefaultEndpoint;
  settings.cache = find_cache(download_dir);
  settings.token = find_token();
  settings.offline = is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE");
  settings.show_bar = !is_set("HF_HUB_DISABLE_PROGRESS_BARS");
  settings.metadata_timeout_s = seconds("HF_HUB_ETAG_TIMEOUT", settings.metadata_timeout_s);
  settings.download_timeout_s = seconds("HF_HUB_DOWNLOAD_TIMEOUT", settings.download_timeout_s);
  return settings;
}

}  // namespace tokenmill
