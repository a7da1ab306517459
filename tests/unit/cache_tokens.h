// Runs of token ids for the cache's tests.
#pragma once

#include <cstdint>
#include <vector>

namespace tokenmill {

using Tokens = std::vector<int32_t>;

inline Tokens numbers(int32_t first, int32_t last) {
  Tokens tokens;
  for (int32_t token = first; token <= last; ++token) tokens.push_back(token);
  return tokens;
}

}  // namespace tokenmill
