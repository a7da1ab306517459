#include "checkpoint/load_error.h"

#include <cstdio>

namespace tokenmill {

std::string quote(std::string_view text) {
  constexpr size_t kMaxShown = 120;
  std::string out = "'";
  for (char c : text.substr(0, kMaxShown)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\x%02x", byte);
      out += escape;
    } else {
      out += c;
    }
  }
  if (text.size() > kMaxShown) out += "...";
  return out + "'";
}

void fail_load(std::string_view file, std::string_view message, ErrorKind kind) {
  throw Error(kind, std::string(file) + ": " + std::string(message));
}

}  // namespace tokenmill
