#include "ops/cuda/step_graphs.h"

#include "ops/backend.h"

namespace tokenmill {
namespace {

constexpr int kFailuresMax = 2;
// Some MiB of device memory each at most; far more than the engine's buckets.
constexpr size_t kGraphsMax = 1024;

}  // namespace

std::unique_ptr<CUgraphExec_st, StepGraphs::ExecDeleter> StepGraphs::record(cudaStream_t stream,
                                                                            const std::function<void()>& work) {
  // Only this thread's own unsafe calls break the record: other engines may allocate meanwhile.
  TM_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  recording_ = true;
  bool whole = true;
  try {
    work();
  } catch (const NotRecordable&) {
    whole = false;
  } catch (const DeviceError&) {
    whole = false;  // a call that a record cannot hold; what is really broken shows again in the plain run
  } catch (...) {
    recording_ = false;
    cudaGraph_t graph = nullptr;
    cudaStreamEndCapture(stream, &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  recording_ = false;
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
  cudaGraphExec_t exec = nullptr;
  if (ended == cudaSuccess && whole && graph != nullptr) cudaGraphInstantiate(&exec, graph, 0);
  if (graph != nullptr) cudaGraphDestroy(graph);
  cudaGetLastError();  // told by the null
  return std::unique_ptr<CUgraphExec_st, ExecDeleter>(exec);
}

void StepGraphs::launch(const Entry& entry, cudaStream_t stream) {
  TM_CUDA(cudaGraphLaunch(entry.exec.get(), stream));
  ++num_launches_;
}

void StepGraphs::run(Key key, cudaStream_t stream, const std::function<void()>& work) {
  if (entries_.size() >= kGraphsMax && !entries_.contains(key)) entries_.clear();
  Entry& entry = entries_[key];
  if (entry.exec != nullptr && entry.moves == DeviceScratch::moves()) {
    return launch(entry, stream);
  }
  entry.exec.reset();
  if (!entry.warm || entry.moves != DeviceScratch::moves() || entry.failures >= kFailuresMax) {
    work();
    entry.warm = true;
    entry.moves = DeviceScratch::moves();
    return;
  }
  entry.exec = record(stream, work);
  if (entry.exec != nullptr) return launch(entry, stream);
  if (++entry.failures == kFailuresMax && warn_) {
    warn_("A step of " + std::to_string(key.first) +
          " rows could not be captured as a CUDA graph and runs without one, which is slower.");
  }
  work();
}

}  // namespace tokenmill
