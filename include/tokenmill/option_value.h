// A value given by name: what JSON, a command line or Python can hold for one sampling parameter or engine option.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

namespace tokenmill {

// monostate: None. Whole numbers are int64_t where they fit, else uint64_t. An empty list may be of either kind.
using OptionValue = std::variant<std::monostate, bool, int64_t, uint64_t, double, std::string, std::vector<std::string>,
                                 std::vector<int64_t>, std::map<int64_t, double>>;

}  // namespace tokenmill
