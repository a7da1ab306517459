// What every call into the Rust library needs: views in, owned results out. Private to src/text.
#pragma once

#include <string>
#include <string_view>

#include "text/shim/tm_text_shim.h"

namespace tokenmill {

inline TmSlice to_slice(std::string_view text) { return {reinterpret_cast<const uint8_t*>(text.data()), text.size()}; }

inline const uint8_t* to_bytes(std::string_view text) { return reinterpret_cast<const uint8_t*>(text.data()); }

// Copies and frees.
inline std::string take(TmBytes bytes) {
  std::string text(reinterpret_cast<const char*>(bytes.data), bytes.data == nullptr ? 0 : bytes.size);
  tm_bytes_free(bytes);
  return text;
}

}  // namespace tokenmill
