// The files that a batch appends to: its results, locked and resumed, and its errors.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tokenmill {

// What an earlier run left in the output.
struct EarlierResults {
  std::vector<bool> done;              // by the request's index
  std::vector<uint64_t> fingerprints;  // by index, of those done
  int64_t bytes = 0;                   // of whole lines; what follows is a torn one
  int64_t file_bytes = 0;
  // The lines of the last request, which may be fewer than its samples.
  int64_t last_index = -1, last_lines = 0, last_offset = 0;

  bool is_done(int64_t index) const {
    return index < static_cast<int64_t>(done.size()) && done[static_cast<size_t>(index)];
  }
};

class BatchOutput {
 public:
  // Opens or makes the file and locks it until the object's end, or the process's. Throws Error(kValue), also where
  // another run holds it. What is no regular file (a pipe, a device) is written to and never resumed.
  explicit BatchOutput(const std::string& path);
  ~BatchOutput();
  BatchOutput(const BatchOutput&) = delete;
  BatchOutput& operator=(const BatchOutput&) = delete;

  bool is_regular() const { return regular_; }
  bool is_same_file(int fd) const;
  bool has_content() const;
  // Throws Error(kValue) where the file holds anything but results of a batch of at most that many requests. Changes
  // nothing.
  EarlierResults scan(int64_t requests_max) const;
  // Everything from that size on is to go.
  void cut(int64_t bytes);
  // In one write, so that a kill tears the last line at most. Throws Error(kRuntime), the file as it was before.
  void append(std::string_view lines);
  // To the disk, against a loss of power.
  void sync();

 private:
  std::string path_;
  int fd_ = -1;
  bool regular_ = false;
  int64_t size_ = 0;
};

// Made when the first error comes; one of an earlier run is removed at once, as its lines are tried again.
class BatchErrorFile {
 public:
  // path "": no file. Throws Error(kValue) where the path holds something else than errors of a batch.
  explicit BatchErrorFile(std::string path);
  ~BatchErrorFile();
  BatchErrorFile(const BatchErrorFile&) = delete;
  BatchErrorFile& operator=(const BatchErrorFile&) = delete;

  void append(std::string_view line);
  std::string path() const { return fd_ < 0 ? "" : path_; }  // "": no error has come

 private:
  std::string path_;
  int fd_ = -1;
};

// "out.jsonl" -> "out.errors.jsonl".
std::string default_error_path(const std::string& output);

}  // namespace tokenmill
