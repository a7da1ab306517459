// What the tests of src/text share: where data lies, random texts, JSON lines.
#pragma once

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

namespace tokenmill::testing {

using Json = nlohmann::ordered_json;

inline std::string data_path(const std::string& name) { return std::string(TOKENMILL_TEST_DATA) + "/text/" + name; }

// "" where the variable is unset.
inline std::string folder_from_env(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

inline std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline std::vector<Json> read_lines(const std::string& path) {
  std::ifstream in(path);
  std::vector<Json> lines;
  for (std::string line; std::getline(in, line);) {
    if (!line.empty()) lines.push_back(Json::parse(line));
  }
  return lines;
}

inline const std::vector<std::string>& snippets() {
  static const std::vector<std::string> kSnippets = {"the",
                                                     " engine",
                                                     "  ",
                                                     "   ",
                                                     " ",
                                                     "\n",
                                                     "\n\n",
                                                     "\t",
                                                     "a",
                                                     "E",
                                                     "é",
                                                     "ö",
                                                     "日",
                                                     "本語",
                                                     "🍕",
                                                     "👩‍👩‍👧",
                                                     "Привет",
                                                     ",",
                                                     ".",
                                                     "!?",
                                                     "'s",
                                                     "'LL",
                                                     "2026",
                                                     "3",
                                                     " 14",
                                                     "for (int i = 0;",
                                                     "{}",
                                                     "x[i]",
                                                     "▁",
                                                     "ﬀ",
                                                     "e\u0301",
                                                     "\u200d",
                                                     "\u00a0",
                                                     "<s>",
                                                     "<|im_start|>",
                                                     "</td>",
                                                     "_",
                                                     "~~~~",
                                                     "한국어",
                                                     "ع",
                                                     "Ġ",
                                                     "\r\n",
                                                     "=",
                                                     "aaaaaaaaaaaaaaaaaaaa"};
  return kSnippets;
}

inline std::string random_text(std::mt19937& random, size_t parts_max) {
  std::string text;
  for (size_t n = random() % (parts_max + 1); n > 0; --n) text += snippets()[random() % snippets().size()];
  return text;
}

}  // namespace tokenmill::testing
