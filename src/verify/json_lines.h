// Reading and writing files of one JSON value a line.
#pragma once

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace tokenmill {

using Json = nlohmann::ordered_json;  // keeps keys in the file's order: chat templates print them

// Empty lines are passed over. Throws Error(kValue) naming file and line.
std::vector<Json> read_json_lines(const std::string& path);
Json read_json_file(const std::string& path);
std::string read_text_file(const std::string& path);

// Truncates and writes in place: the path may be a pipe or the null device.
class JsonLinesWriter {
 public:
  explicit JsonLinesWriter(const std::string& path);
  void write(const Json& value);
  // Throws Error(kValue) when not all could be written.
  void close();

 private:
  std::string path_;
  std::ofstream file_;
};

}  // namespace tokenmill
