// Deterministic mutations of a file's bytes, for tests that parsers never do worse than throw.
#pragma once

#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <string_view>

namespace tokenmill::testing {

// Rounds of a mutation test: 10,000, or TOKENMILL_FUZZ_ROUNDS.
inline uint64_t fuzz_rounds() {
  const char* text = std::getenv("TOKENMILL_FUZZ_ROUNDS");
  const unsigned long long rounds = text == nullptr ? 0 : std::strtoull(text, nullptr, 10);
  return rounds > 0 ? rounds : 10000;
}

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : generator_(seed) {}

  // One to four mutations. Three of four fall into the first `header_bytes`, where the structure is.
  std::string mutate(std::string bytes, size_t header_bytes) {
    for (uint64_t i = 0, count = 1 + below(4); i < count && !bytes.empty(); ++i) {
      const size_t range = below(4) != 0 && header_bytes < bytes.size() ? header_bytes : bytes.size();
      mutate_once(bytes, below(range == 0 ? 1 : range));
    }
    return bytes;
  }

  // As mutate, but numbers and words of a JSON text also become others.
  std::string mutate_json(std::string text) {
    if (below(3) == 0) return mutate(std::move(text), text.size());
    for (uint64_t i = 0, count = 1 + below(3); i < count; ++i) replace_value(text);
    return text;
  }

  uint64_t below(uint64_t limit) { return generator_() % limit; }

 private:
  void mutate_once(std::string& bytes, size_t at) {
    switch (below(6)) {
      case 0:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
        break;
      case 1:
        bytes[at] = static_cast<char>(generator_());
        break;
      case 2:
        bytes.resize(at);
        break;
      case 3:  // a length field
        rewrite_number(bytes, at);
        break;
      case 4: {  // a splice of the file's own bytes
        const size_t from = below(bytes.size()), size = below(64);
        bytes.replace(at, below(64), bytes.substr(from, size));
        break;
      }
      default:
        bytes.insert(at, static_cast<size_t>(1 + below(16)), static_cast<char>(generator_()));
    }
  }

  void rewrite_number(std::string& bytes, size_t at) {
    constexpr std::array<uint64_t, 14> kValues = {
        0, 1, 2, 3, 255, 65536, (1u << 31) - 1, 1ull << 31, ~0u, 1ull << 32, 1ull << 62, 1ull << 63, ~0ull, ~0ull - 7};
    const uint64_t value = below(4) == 0 ? below(1000) : kValues[below(kValues.size())];
    const size_t size = below(2) == 0 ? 4 : 8;
    if (at + size <= bytes.size()) std::memcpy(bytes.data() + at, &value, size);
  }

  // The value after one of the text's colons or in one of its lists.
  void replace_value(std::string& text) {
    constexpr std::array<std::string_view, 26> kValues = {
        "0",      "-1",       "1",    "2",          "7",
        "1e999",  "1e30",     "-0.0", "4294967296", "18446744073709551615",
        "null",   "true",     "\"\"", "false",      "[]",
        "{}",     "[0]",      "0.5",  "\"../x\"",   "\"sliding_attention\"",
        "1e-300", "\"yarn\"", "[[[[", "{\"a\":",    "\"\\u0000\"",
        "[1,2,3]"};
    const size_t begin = text.find_first_of(":[", below(text.size() + 1));
    if (begin == std::string::npos) return;
    const size_t end = text.find_first_of(",]}", begin);
    if (end == std::string::npos) return;
    text.replace(begin + 1, end - begin - 1, kValues[below(kValues.size())]);
  }

  std::mt19937_64 generator_;
};

}  // namespace tokenmill::testing
