#include "checkpoint/load_error.h"

#include "base/printable.h"

namespace tokenmill {

std::string quote(std::string_view text) {
  constexpr size_t kMaxShown = 120;
  std::string out = "'" + printable(text.substr(0, kMaxShown));
  if (text.size() > kMaxShown) out += "...";
  return out + "'";
}

void fail_load(std::string_view file, std::string_view message, ErrorKind kind) {
  throw Error(kind, std::string(file) + ": " + std::string(message));
}

}  // namespace tokenmill
