// "org/name", "org/name:file.gguf", "org/name:Q4_K_M": a model on the hub, and which of its files.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace tokenmill {

struct HubId {
  std::string repo;      // "org/name"
  std::string selector;  // a GGUF file's name or its quantisation; "": none
};

// nullopt where the text cannot be one; a local path that exists comes first, which is the caller's business.
std::optional<HubId> parse_hub_id(std::string_view text);

// Letters, digits, '-', '_', '.'; not empty, not beginning with '.'.
bool is_plain_name(std::string_view name);

// A path that stays inside the folder it is put in: names and '/', no "..", no empty part.
bool is_inside_path(std::string_view path);

}  // namespace tokenmill
