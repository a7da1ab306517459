// Recorded steps, by key: run as they are the first time, recorded the second, launched as one from then on.
//
// A record holds addresses, so it is made anew after a scratch buffer has moved. What could not be recorded, or whose
// record could not be launched for lack of device memory, is run as it is and tried once more; then it is said, once a
// key. Where memory is what was missing, others may give some back: it is tried again after 64 more runs, then 128, and
// so on up to 4,096, so that trying costs next to nothing. What cannot be recorded at all is run as it is for good.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "ops/cuda/cuda_common.h"

namespace tokenmill {

// Thrown by an operation that cannot be part of a record (it would copy from memory that is gone by its next launch).
class NotRecordable : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class StepGraphs {
 public:
  // moves: of the buffers that the recorded work uses; outlives this.
  explicit StepGraphs(const ScratchMoves& moves) : moves_(moves) {}
  // The caller's key, and what of the plan decides the shape of launches.
  using Key = std::pair<uint64_t, uint64_t>;

  void run(Key key, cudaStream_t stream, const std::function<void()>& work);
  // Where it is told that a step cannot be recorded; null: nowhere.
  void set_warning_sink(std::function<void(const std::string&)> sink) { warn_ = std::move(sink); }
  bool recording() const { return recording_; }
  int64_t num_launches() const { return num_launches_; }

 private:
  struct ExecDeleter {
    void operator()(cudaGraphExec_t exec) const { cudaGraphExecDestroy(exec); }
  };
  struct Entry {
    std::unique_ptr<CUgraphExec_st, ExecDeleter> exec;
    uint64_t moves = 0;  // as of the last run
    bool warm = false;   // ran once with scratch of this size
    bool warned = false;
    int failures = 0;            // since a record of it was launched
    int64_t runs_until_try = 0;  // as it is, before it is recorded again
  };
  struct Failure {
    std::string reason;  // empty: none
    bool lacks_memory = false;
  };
  // Null where it could not be recorded; nothing has been run then.
  std::unique_ptr<CUgraphExec_st, ExecDeleter> record(cudaStream_t stream, const std::function<void()>& work,
                                                      Failure& failure);
  // False where the device has not enough memory for it; nothing has been run then.
  bool launch(Entry& entry, cudaStream_t stream, Failure& failure);
  void note_failure(Key key, Entry& entry, const Failure& failure);

  const ScratchMoves& moves_;
  std::map<Key, Entry> entries_;
  std::function<void(const std::string&)> warn_;
  bool recording_ = false;
  int64_t num_launches_ = 0;
};

}  // namespace tokenmill
