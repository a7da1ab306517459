#include "ops/cuda/step_graphs.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "ops/backend.h"

namespace tokenmill {
namespace {

// Failures in a row before a step is left alone for a while, or for good.
constexpr int kFailuresMax = 2;
// Recording costs the host about what a run without it does: one in so many runs at most.
constexpr int64_t kRunsUntilTryMin = 64, kRunsUntilTryMax = 4096;
constexpr int64_t kNeverAgain = std::numeric_limits<int64_t>::max();
// Some MiB of device memory each at most; far more than the engine's buckets.
constexpr size_t kGraphsMax = 1024;

struct GraphDeleter {
  void operator()(cudaGraph_t graph) const { cudaGraphDestroy(graph); }
};

// Of a failed call, whose error is cleared.
std::string reason_of(cudaError_t status) {
  cudaGetLastError();
  std::string reason = std::string(cudaGetErrorString(status)) + " (" + cudaGetErrorName(status) + ").";
  if (status == cudaErrorMemoryAllocation) reason += " A lower mem_fraction_static or max_total_tokens leaves more.";
  return reason;
}

}  // namespace

std::unique_ptr<CUgraphExec_st, StepGraphs::ExecDeleter> StepGraphs::record(cudaStream_t stream,
                                                                            const std::function<void()>& work,
                                                                            Failure& failure) {
  // Only this thread's own unsafe calls break the record: other engines may allocate meanwhile.
  const cudaError_t begun = cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  if (begun != cudaSuccess) {
    failure = {reason_of(begun), begun == cudaErrorMemoryAllocation};
    return nullptr;
  }
  cudaError_t ended = cudaSuccess;
  const auto end = [&] {
    cudaGraph_t graph = nullptr;
    ended = cudaStreamEndCapture(stream, &graph);
    cudaGetLastError();
    return std::unique_ptr<CUgraph_st, GraphDeleter>(graph);
  };
  recording_ = true;
  try {
    work();
  } catch (const NotRecordable& error) {
    failure = {error.what(), false};
  } catch (const DeviceMemoryError& error) {
    failure = {error.what(), true};
  } catch (const DeviceError& error) {
    // A call that a record cannot hold; what is really broken shows again in the plain run.
    failure = {error.what(), false};
  } catch (...) {
    recording_ = false;
    end();
    throw;
  }
  recording_ = false;
  const auto graph = end();
  if (!failure.reason.empty()) return nullptr;
  cudaGraphExec_t exec = nullptr;
  const cudaError_t made = ended == cudaSuccess ? cudaGraphInstantiate(&exec, graph.get(), 0) : ended;
  if (made != cudaSuccess) failure = {reason_of(made), made == cudaErrorMemoryAllocation};
  return std::unique_ptr<CUgraphExec_st, ExecDeleter>(made == cudaSuccess ? exec : nullptr);
}

bool StepGraphs::launch(Entry& entry, cudaStream_t stream, Failure& failure) {
  const cudaError_t launched = cudaGraphLaunch(entry.exec.get(), stream);
  if (launched == cudaErrorMemoryAllocation) {  // a record's first launch takes memory for it
    failure = {reason_of(launched), true};
    return false;
  }
  check_cuda(launched, "cudaGraphLaunch");
  entry.failures = 0;
  ++num_launches_;
  return true;
}

void StepGraphs::note_failure(Key key, Entry& entry, const Failure& failure) {
  entry.exec.reset();
  if (++entry.failures < kFailuresMax) return;
  const int doublings = std::min(entry.failures - kFailuresMax, 16);
  entry.runs_until_try = failure.lacks_memory ? std::min(kRunsUntilTryMin << doublings, kRunsUntilTryMax) : kNeverAgain;
  if (std::exchange(entry.warned, true) || !warn_) return;
  warn_("A step of " + std::to_string(key.first) +
        " rows could not be captured as a CUDA graph and runs without one, which is slower: " + failure.reason +
        (failure.lacks_memory ? " It is tried again from time to time." : ""));
}

void StepGraphs::run(Key key, cudaStream_t stream, const std::function<void()>& work) {
  if (entries_.size() >= kGraphsMax && !entries_.contains(key)) entries_.clear();
  Entry& entry = entries_[key];
  const bool moved = entry.moves != moves_.count();
  if (moved) entry.exec.reset();
  Failure failure;
  if (entry.exec != nullptr) {
    if (launch(entry, stream, failure)) return;
    note_failure(key, entry, failure);
  } else if (entry.warm && !moved && entry.runs_until_try == 0) {
    entry.exec = record(stream, work, failure);
    if (entry.exec != nullptr && launch(entry, stream, failure)) return;
    note_failure(key, entry, failure);
  } else if (entry.runs_until_try > 0 && entry.runs_until_try != kNeverAgain) {
    --entry.runs_until_try;
  }
  work();
  entry.warm = true;
  entry.moves = moves_.count();
}

}  // namespace tokenmill
