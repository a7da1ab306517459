#include "ops/cuda/step_graphs.h"

#include "ops/backend.h"

namespace tokenmill {
namespace {

constexpr int kFailuresMax = 2;
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
                                                                            std::string& reason) {
  // Only this thread's own unsafe calls break the record: other engines may allocate meanwhile.
  const cudaError_t begun = cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  if (begun != cudaSuccess) {
    reason = reason_of(begun);
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
    reason = error.what();
  } catch (const DeviceMemoryError& error) {
    reason = error.what();
  } catch (const DeviceError& error) {
    reason = error.what();  // a call that a record cannot hold; what is really broken shows again in the plain run
  } catch (...) {
    recording_ = false;
    end();
    throw;
  }
  recording_ = false;
  const auto graph = end();
  if (!reason.empty()) return nullptr;
  cudaGraphExec_t exec = nullptr;
  const cudaError_t made = ended == cudaSuccess ? cudaGraphInstantiate(&exec, graph.get(), 0) : ended;
  if (made != cudaSuccess) reason = reason_of(made);
  return std::unique_ptr<CUgraphExec_st, ExecDeleter>(made == cudaSuccess ? exec : nullptr);
}

bool StepGraphs::launch(const Entry& entry, cudaStream_t stream, std::string& reason) {
  const cudaError_t launched = cudaGraphLaunch(entry.exec.get(), stream);
  if (launched == cudaErrorMemoryAllocation) {  // a record's first launch takes memory for it
    reason = reason_of(launched);
    return false;
  }
  check_cuda(launched, "cudaGraphLaunch");
  ++num_launches_;
  return true;
}

void StepGraphs::run(Key key, cudaStream_t stream, const std::function<void()>& work) {
  if (entries_.size() >= kGraphsMax && !entries_.contains(key)) entries_.clear();
  Entry& entry = entries_[key];
  const bool moved = entry.moves != moves_.count();
  if (moved) entry.exec.reset();
  std::string reason;
  if (entry.exec != nullptr && launch(entry, stream, reason)) return;
  if (!entry.warm || moved || entry.failures >= kFailuresMax) {
    work();
    entry.warm = true;
    entry.moves = moves_.count();
    return;
  }
  if (entry.exec == nullptr) {
    entry.exec = record(stream, work, reason);
    if (entry.exec != nullptr && launch(entry, stream, reason)) return;
  }
  entry.exec.reset();
  if (++entry.failures == kFailuresMax && warn_) {
    warn_("A step of " + std::to_string(key.first) +
          " rows could not be captured as a CUDA graph and runs without one, which is slower: " + reason);
  }
  work();
}

}  // namespace tokenmill
