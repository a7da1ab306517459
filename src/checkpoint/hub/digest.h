// SHA-1 and SHA-256 (FIPS 180-4) of bytes that come in pieces: what the hub names files by.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace tokenmill {

class Digest {
 public:
  enum class Kind { kSha1, kSha256 };
  explicit Digest(Kind kind);
  void update(std::string_view bytes);
  // Lower-case hexadecimal digits; the object is used up.
  std::string finish();

 private:
  void block(const unsigned char* bytes);
  void block_sha1(const unsigned char* bytes);
  void block_sha256(const unsigned char* bytes);

  Kind kind_;
  std::array<uint32_t, 8> state_{};
  std::array<unsigned char, 64> buffer_{};
  uint64_t size_ = 0;  // bytes so far
};

}  // namespace tokenmill
