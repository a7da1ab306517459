#include "verify/json_lines.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>

#include "tokenmill/error.h"

namespace tokenmill {

namespace {

std::ifstream open_input(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error(ErrorKind::kValue, path + ": cannot be read: " + std::strerror(errno) + ".");
  return file;
}

Json parse(const std::string& text, const std::string& where) {
  try {
    return Json::parse(text);
  } catch (const Json::exception& error) {
    throw Error(ErrorKind::kValue, where + ": not valid JSON: " + error.what() + ".");
  }
}

}  // namespace

std::vector<Json> read_json_lines(const std::string& path) {
  std::ifstream file = open_input(path);
  std::vector<Json> values;
  std::string line;
  for (int64_t number = 1; std::getline(file, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    values.push_back(parse(line, path + ":" + std::to_string(number)));
  }
  if (file.bad()) throw Error(ErrorKind::kValue, path + ": could not be read to its end.");
  return values;
}

std::string read_text_file(const std::string& path) {
  std::ifstream file = open_input(path);
  std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (file.bad()) throw Error(ErrorKind::kValue, path + ": could not be read to its end.");
  return text;
}

Json read_json_file(const std::string& path) { return parse(read_text_file(path), path); }

JsonLinesWriter::JsonLinesWriter(const std::string& path) : path_(path), file_(path, std::ios::binary) {
  if (!file_) throw Error(ErrorKind::kValue, path + ": cannot be written: " + std::strerror(errno) + ".");
}

void JsonLinesWriter::write(const Json& value) {
  file_ << value.dump(-1, ' ', false, Json::error_handler_t::replace) << '\n';
  if (!file_) throw Error(ErrorKind::kValue, path_ + ": writing failed: " + std::strerror(errno) + ".");
}

void JsonLinesWriter::close() {
  file_.close();
  if (!file_) throw Error(ErrorKind::kValue, path_ + ": writing failed: " + std::strerror(errno) + ".");
}

}  // namespace tokenmill
