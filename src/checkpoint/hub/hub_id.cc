#include "checkpoint/hub/hub_id.h"

#include <algorithm>

namespace tokenmill {
namespace {

constexpr size_t kRepoBytesMax = 256;

bool is_name_char(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
}

}  // namespace

bool is_plain_name(std::string_view name) {
  return !name.empty() && name.front() != '.' && std::all_of(name.begin(), name.end(), is_name_char);
}

bool is_inside_path(std::string_view path) {
  if (path.empty() || path.find('\0') != std::string_view::npos || path.find('\\') != std::string_view::npos)
    return false;
  while (true) {
    const size_t slash = std::min(path.find('/'), path.size());
    const std::string_view part = path.substr(0, slash);
    if (part.empty() || part == "." || part == "..") return false;
    if (slash == path.size()) return true;
    path.remove_prefix(slash + 1);
  }
}

std::optional<HubId> parse_hub_id(std::string_view text) {
  const size_t colon = text.find(':');
  const std::string_view repo = text.substr(0, colon);
  const size_t slash = repo.find('/');
  if (slash == std::string_view::npos || repo.size() > kRepoBytesMax) return std::nullopt;
  if (!is_plain_name(repo.substr(0, slash)) || !is_plain_name(repo.substr(slash + 1))) return std::nullopt;
  HubId id{.repo = std::string(repo), .selector = {}};
  if (colon == std::string_view::npos) return id;
  id.selector = text.substr(colon + 1);
  if (!is_inside_path(id.selector)) return std::nullopt;
  return id;
}

}  // namespace tokenmill
