// The known name that a misspelt one is nearest to, for error messages.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace tokenmill::cli {

// The one with the least Levenshtein distance, the first of several; names must not be empty.
std::string nearest_of(std::string_view name, const std::vector<std::string>& names);

}  // namespace tokenmill::cli
