// The one form of a load error: file, then what (a key, a tensor), then the rule and the value, then the remedy.
#pragma once

#include <string>
#include <string_view>

#include "tokenmill/error.h"

namespace tokenmill {

// Text that came from a file, for one line of a message: control characters escaped, long text cut.
std::string quote(std::string_view text);

[[noreturn]] void fail_load(std::string_view file, std::string_view message, ErrorKind kind = ErrorKind::kValue);

}  // namespace tokenmill
