// One run of a batch: reads ahead of the results by a window, submits, and writes what has finished.
//
//   input ──► feed: parse, check, submit ──► engine ──► inbox ──► take: collect samples ──► emit: output, error file
//
// All of it on the caller's thread but the callback that fills the inbox.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/batch/batch_input.h"
#include "engine/batch/batch_output.h"
#include "engine/batch/batch_record.h"
#include "engine/engine_core.h"
#include "tokenmill/batch.h"

namespace tokenmill {

class BatchRun {
 public:
  // output "": results go to options.on_result alone.
  BatchRun(EngineCore& core, const std::string& input, const std::string& output, const BatchOptions& options);
  ~BatchRun();  // aborts what still runs
  BatchRun(const BatchRun&) = delete;
  BatchRun& operator=(const BatchRun&) = delete;

  BatchReport run();

 private:
  class Inbox;
  struct Arrival {
    int64_t index = 0;  // of the request
    Output output;
  };
  // A request that the engine has; without its prompt.
  struct Pending {
    BatchRequest meta;
    std::string rid;
    int64_t line = 0, missing = 0;
    uint64_t fingerprint = 0;
    std::vector<Output> outputs;  // by sample
    std::string error;
  };
  // A request that has ended.
  struct Ended {
    RecordId id;
    int64_t line = 0;
    std::vector<Output> outputs;
    std::string json, error;
  };

  void survey();
  void mend(const std::string& last_line);
  void feed();
  bool read_one(std::vector<Request>& requests, std::vector<int64_t>& indices);
  void submit(std::vector<Request> requests, const std::vector<int64_t>& indices);
  void check_repeated(const std::string& text);
  void take();
  void collect(Arrival arrival);
  void fail(const RecordId& id, int64_t line, const std::string& custom_id, const char* code, const std::string& error);
  void finish(Ended ended);
  void emit(const Ended& ended);
  void forget(const std::vector<int64_t>& indices);
  bool time_to_look();  // for a stop, where no result brings one here: ten times a second
  void report_progress();
  uint64_t fingerprint_of(std::string_view line) const { return fnv1a(line, settings_hash_); }
  bool has_room() const { return samples_ + static_cast<int64_t>(held_.size()) < window_; }

  EngineCore& core_;
  const BatchOptions& options_;
  int64_t window_;
  uint64_t settings_hash_;
  RecordContext context_;
  BatchInput input_;
  std::optional<BatchOutput> output_;
  std::optional<BatchErrorFile> errors_;
  EarlierResults earlier_;
  std::shared_ptr<Inbox> inbox_;
  BatchReport report_;

  std::chrono::steady_clock::time_point looked_ = std::chrono::steady_clock::now();
  std::string line_;
  bool exhausted_ = false;                             // all of the input was read
  std::unordered_map<uint64_t, int64_t> first_lines_;  // hash of a custom_id that comes twice -> its first line, or 0
  std::unordered_map<int64_t, Pending> pending_;       // by index
  int64_t samples_ = 0;                                // of the pending requests, not yet ended
  std::map<int64_t, Ended> held_;                      // ordered: whose turn has not come
  int64_t next_ = 0;                                   // ordered: the index whose turn it is
};

}  // namespace tokenmill
