// XXH3 (128 bits) of bytes that come in pieces: tells contents apart and finds damage, at the speed of memory. Not for
// names that others choose: it withstands no forger.
#pragma once

#include <memory>
#include <string>
#include <string_view>

namespace tokenmill {

class ContentHash {
 public:
  static constexpr size_t kDigits = 32;

  ContentHash();
  ~ContentHash();
  void update(std::string_view bytes);
  std::string finish() const;  // of all so far: kDigits lower-case hexadecimal digits

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tokenmill
