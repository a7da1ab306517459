#include "base/content_hash.h"

#include <cinttypes>
#include <cstdio>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace tokenmill {

struct ContentHash::State {
  XXH3_state_t xxh3;
};

ContentHash::ContentHash() : state_(std::make_unique<State>()) { XXH3_128bits_reset(&state_->xxh3); }
ContentHash::~ContentHash() = default;

void ContentHash::update(std::string_view bytes) { XXH3_128bits_update(&state_->xxh3, bytes.data(), bytes.size()); }

std::string ContentHash::finish() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(&state_->xxh3);
  char text[kDigits + 1];
  std::snprintf(text, sizeof text, "%016" PRIx64 "%016" PRIx64, uint64_t{hash.high64}, uint64_t{hash.low64});
  return text;
}

}  // namespace tokenmill
