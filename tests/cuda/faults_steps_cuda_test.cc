// What goes wrong with a card while an engine runs: memory that runs out while a graph is captured and in the middle of
// a step, kernels that fail; options, what is given back, and cards of two kinds. On cards that are not there
// (fake_cuda.h).
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cuda/faults_testing.h"
#include "ops/backend_registry.h"
#include "ops/cuda/per_device.h"
#include "ops/cuda/step_graphs.h"
#include "util/expect_error.h"

namespace tokenmill::testing {
namespace {

// --- memory while it runs

// A graph that cannot be captured: the step runs as it is. Once more is tried; then the log says so, once a size.
TEST(CudaFaults, OutOfMemoryDuringCaptureFallsBackWithAWarning) {
  for (const char* const call :
       {"cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphLaunch"}) {
    SCOPED_TRACE(call);
    FakeCuda cuda;
    cuda.set_answer(failing(call, 1, cudaErrorMemoryAllocation, kAlways));
    ServerArgs args = small_args();
    args.log_level = "warning";
    Lines lines;
    Engine engine(args, lines.sink());
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(is_whole(engine.generate(request_of(9, 8)).at(0), 8));
    EXPECT_EQ(lines.count("A step of 1 rows could not be captured as a CUDA graph and runs without one, which is "
                          "slower: "),
              1);
    EXPECT_EQ(lines.count("cudaErrorMemoryAllocation). A lower mem_fraction_static or max_total_tokens leaves more. "
                          "It is tried again from time to time."),
              4);
    const int tried = cuda.calls()[call];
    EXPECT_TRUE(is_whole(engine.generate(request_of(9, 8)).at(0), 8));
    EXPECT_EQ(cuda.calls()[call], tried) << "tried again for nothing";
    engine.shutdown();
    EXPECT_EQ(cuda.num_held(), 0);
  }
}

// An engine that captures steps of one row, the first `times` of which fail.
class FailingCaptures {
 public:
  explicit FailingCaptures(cudaError_t error, int times = kAlways) : engine(start(error, times)) {}
  int count(const char* call) const { return cuda.calls()[call]; }
  void run_600_steps() {
    for (int i = 0; i < 6; ++i) EXPECT_TRUE(is_whole(engine.generate(request_of(9, 101)).at(0), 101));
  }

  FakeCuda cuda;
  Lines lines;
  Engine engine;

 private:
  Engine start(cudaError_t error, int times) {
    cuda.set_answer(failing("cudaGraphInstantiate", 1, error, times));
    ServerArgs args = small_args();
    args.log_level = "warning";
    args.cuda_graph_max_bs = 1;
    return Engine(args, lines.sink());
  }
};

TEST(CudaFaults, ACaptureThatFailsOnceIsMadeLater) {
  FailingCaptures captures(cudaErrorMemoryAllocation, 1);
  EXPECT_TRUE(is_whole(captures.engine.generate(request_of(9, 8)).at(0), 8));
  EXPECT_EQ(captures.lines.all.size(), 0u);
  EXPECT_GE(captures.count("cudaGraphLaunch"), 7);
}

// Memory that others give back is found: after 64 more steps of that size, 128 and so on, with one word in the log.
TEST(CudaFaults, ACaptureThatLackedMemoryIsMadeOnceThereIsSome) {
  FailingCaptures captures(cudaErrorMemoryAllocation);
  const int at_start = captures.count("cudaGraphInstantiate");
  EXPECT_EQ(at_start, 2);
  captures.run_600_steps();
  EXPECT_EQ(captures.count("cudaGraphInstantiate") - at_start, 3) << "after 64, 128 and 256 of 600 steps";
  EXPECT_EQ(captures.count("cudaGraphLaunch"), 0);
  captures.cuda.set_answer(nullptr);
  captures.run_600_steps();
  EXPECT_EQ(captures.count("cudaGraphInstantiate") - at_start, 4);
  EXPECT_GE(captures.count("cudaGraphLaunch"), 100);
  EXPECT_EQ(captures.lines.all.size(), 1u);
}

// What is not for want of memory stays as it is.
TEST(CudaFaults, ACaptureThatCannotBeIsNotTriedForEver) {
  FailingCaptures captures(cudaErrorNotSupported);
  captures.run_600_steps();
  EXPECT_EQ(captures.count("cudaGraphInstantiate"), 2);
  EXPECT_EQ(captures.lines.all.size(), 1u);
  EXPECT_EQ(captures.lines.count("tried again"), 0);
}

// Every allocation in every kind of step fails once: its requests end and say so, the next ones are whole. Without
// graphs, that is: with them the start has run the largest steps, and later ones allocate nothing.
TEST(CudaFaults, OutOfMemoryInAStepEndsItsRequestsOnly) {
  for (const bool use_graphs : {true, false}) {
    for (const char* const dtype : {"bfloat16", "float32"}) {
      for (const std::string call : {"cudaMalloc", "cudaHostAlloc", "cudaLaunchKernelExC"}) {
        int failed = 0;
        for (int nth = 1, went_wrong = 1; went_wrong == 1 && nth < 100; ++nth) {
          SCOPED_TRACE(call + " " + std::to_string(nth) + " " + dtype);
          FakeCuda cuda;
          ServerArgs args = small_args(dtype);
          args.disable_cuda_graph = !use_graphs;
          args.cuda_graph_max_bs = 2;
          Engine engine(args);
          cuda.set_answer(failing(call, nth, cudaErrorMemoryAllocation));
          // A long prompt, in chunks, beside a short one, then rows of one token.
          const std::vector<Request> requests = {request_of(3, 12), request_of(450, 5), request_of(40, 9)};
          went_wrong = 0;
          for (const Output& output : engine.generate(requests)) {
            if (output.meta_info.finish_reason->type != FinishReason::Type::kAbort) continue;
            went_wrong = 1;
            EXPECT_NE(output.meta_info.finish_reason->message.find("The forward pass failed: Not enough memory"),
                      std::string::npos)
                << output.meta_info.finish_reason->message;
          }
          failed += went_wrong;
          cuda.set_answer(nullptr);
          const auto again = engine.generate(requests);
          EXPECT_TRUE(is_whole(again.at(0), 12) && is_whole(again.at(1), 5) && is_whole(again.at(2), 9));
          engine.shutdown();
          EXPECT_EQ(cuda.num_held(), 0);
        }
        if (call == "cudaLaunchKernelExC") {  // which may find no room for a kernel's code
          EXPECT_GE(failed, 20) << dtype;
        } else {
          EXPECT_EQ(failed, 0) << "what steps work in was taken at start: " << call << " " << dtype;
        }
      }
    }
  }
}

// --- kernels

// Of a kernel that failed the device's next calls tell. The engine ends, typed, in every call; the process lives.
TEST(CudaFaults, AFailedKernelEndsTheEngine) {
  for (const char* const call : {"cudaEventSynchronize", "cudaLaunchKernelExC", "cudaGraphLaunch", "cudaMemcpyAsync"}) {
    SCOPED_TRACE(call);
    FakeCuda cuda;
    Engine engine(small_args());
    EXPECT_TRUE(is_whole(engine.generate(request_of(9, 8)).at(0), 8));
    cuda.set_answer(failing(call, 5, cudaErrorIllegalAddress, kAlways));
    auto waiting = engine.generate_async({request_of(30, 400), request_of(8, 400)});
    EXPECT_LOAD_ERROR((void)waiting.get(), ErrorKind::kRuntime, "The engine has stopped", "cudaErrorIllegalAddress");
    EXPECT_LOAD_ERROR((void)engine.generate(request_of(9, 8)), ErrorKind::kRuntime, "The engine has stopped");
    engine.shutdown();
    EXPECT_EQ(cuda.num_held(), 0);
    cuda.set_answer(nullptr);
    EXPECT_TRUE(is_whole(Engine(small_args()).generate(request_of(9, 8)).at(0), 8));
  }
}

// Any call of the steps fails, once: the engine ends with a typed error, or ends the requests, or does without.
TEST(CudaFaults, AnyCallOfAStepMayFail) {
  const std::vector<Request> requests = {request_of(3, 12), request_of(450, 5), request_of(40, 9)};
  std::map<std::string, int> calls;
  {
    FakeCuda cuda;
    Engine engine(small_args());
    const auto before = cuda.calls();
    (void)engine.generate(requests);
    for (const auto& [call, count] : cuda.calls()) {
      const auto known = before.find(call);
      const int made = count - (known != before.end() ? known->second : 0);
      if (made > 0) calls[call] = made;
    }
  }
  int stopped = 0, went_on = 0;
  for (const auto& [call, count] : calls) {
    for (const int nth : std::set<int>{1, (count + 1) / 2, count}) {
      SCOPED_TRACE(call + " " + std::to_string(nth) + " of " + std::to_string(count));
      FakeCuda cuda;
      Engine engine(small_args());
      cuda.set_answer(failing(call, nth, cudaErrorLaunchFailure));
      try {
        (void)engine.generate(requests);
        cuda.set_answer(nullptr);
        EXPECT_TRUE(is_whole(engine.generate(request_of(20, 6)).at(0), 6));
        ++went_on;
      } catch (const Error& error) {
        ++stopped;
        const std::string said = error.what();
        EXPECT_NE(said.find("The engine has stopped"), std::string::npos) << said;
        EXPECT_NE(said.find(call.starts_with("cublas") ? "cuBLAS: " : "cudaErrorLaunchFailure"), std::string::npos)
            << said;
        EXPECT_LOAD_ERROR((void)engine.generate(requests), ErrorKind::kRuntime, "The engine has stopped");
      }
      engine.shutdown();
      EXPECT_EQ(cuda.num_held(), 0);
    }
  }
  std::printf("[ faults   ] %zu calls of steps: %d engines stopped, %d went on\n", calls.size(), stopped, went_on);
  EXPECT_GT(stopped, 10);
}

// --- engines beside each other

// What one engine records is its own: buffers that grow in another, on its card or on another card, move none of its.
TEST(CudaFaults, AnotherEngineCostsNoRecords) {
  for (const char* const second_device : {"cuda:0", "cuda:1"}) {
    SCOPED_TRACE(second_device);
    FakeCuda cuda;
    cuda.cards.resize(2);
    const auto records_of_a_run = [&](Engine& engine) {
      const int made = cuda.calls()["cudaGraphInstantiate"], launched = cuda.calls()["cudaGraphLaunch"];
      EXPECT_TRUE(is_whole(engine.generate(request_of(9, 8)).at(0), 8));
      EXPECT_GE(cuda.calls()["cudaGraphLaunch"] - launched, 7);
      return cuda.calls()["cudaGraphInstantiate"] - made;
    };
    ServerArgs args = small_args();
    args.device = "cuda:0";
    Engine first(args);
    EXPECT_EQ(records_of_a_run(first), 0) << "all made at start";
    args.device = second_device;
    Engine second(args);
    EXPECT_EQ(records_of_a_run(first), 0);
    EXPECT_EQ(records_of_a_run(second), 0);
    second.shutdown();
    EXPECT_EQ(records_of_a_run(first), 0);
  }
}

// What its own buffers' growth costs it, and only it.
TEST(CudaFaults, ARecordIsMadeAnewAfterABufferOfItsBackendHasMoved) {
  FakeCuda cuda;
  const CudaStream stream;
  struct Recorder {
    ScratchMoves moves;
    DeviceScratch scratch{moves};
    StepGraphs graphs{moves};
  } one, other;
  int worked = 0;
  const auto run = [&](Recorder& recorder) {
    recorder.graphs.run({1, 0}, stream.get(), [&] {
      ++worked;
      recorder.scratch.get<float>(1, stream.get());
    });
  };
  for (int i = 0; i < 4; ++i) run(one), run(other);
  EXPECT_EQ(worked, 4) << "each as it is, then recorded";
  EXPECT_EQ(cuda.calls()["cudaGraphLaunch"], 6);
  one.scratch.get<float>(1 << 20, stream.get());
  for (int i = 0; i < 4; ++i) run(other);
  EXPECT_EQ(worked, 4);
  EXPECT_EQ(cuda.calls()["cudaGraphLaunch"], 10);
  for (int i = 0; i < 4; ++i) run(one);
  EXPECT_EQ(worked, 6);
  EXPECT_EQ(cuda.calls()["cudaGraphLaunch"], 13);
}

// --- options and what is given back

TEST(CudaFaults, GraphsAreCapturedForTheSizesThatTheOptionsSay) {
  const auto records_at_start = [](FakeCuda& cuda, ServerArgs args, Lines& lines) {
    args.log_level = "info";
    Engine engine(args, lines.sink());
    const int made = cuda.calls()["cudaGraphInstantiate"];
    std::vector<Request> twelve(12, request_of(4, 6));
    for (int i = 0; i < 3; ++i) {
      for (const Output& output : engine.generate(twelve)) EXPECT_TRUE(is_whole(output, 6));
    }
    return std::pair(made, cuda.calls()["cudaGraphInstantiate"] - made);
  };
  ServerArgs args = small_args();
  {
    FakeCuda cuda;
    Lines lines;
    const auto [at_start, later] = records_at_start(cuda, args, lines);
    EXPECT_EQ(at_start, 4);  // 1, 2, 4, 8 rows
    EXPECT_GE(later, 1);     // 16, for twelve
    EXPECT_EQ(lines.count("Capture cuda graph begin."), 1);
  }
  {
    FakeCuda cuda;
    Lines lines;
    args.cuda_graph_max_bs = 2;
    const auto [at_start, later] = records_at_start(cuda, args, lines);
    EXPECT_EQ(at_start, 2);
    EXPECT_EQ(later, 0);
  }
  {
    FakeCuda cuda;
    Lines lines;
    args.disable_cuda_graph = true;
    records_at_start(cuda, args, lines);
    EXPECT_EQ(cuda.calls()["cudaStreamBeginCapture"], 0);
    EXPECT_EQ(lines.count("Capture cuda graph"), 0);
  }
}

TEST(CudaFaults, WeightsAreReadByAsManyThreadsAsTheOptionSays) {
  const auto threads_while_loading = [](int64_t num_threads) {
    FakeCuda cuda;
    int64_t most = 0;
    cuda.answer = [&](std::string_view call) {
      if (call == "cudaEventRecord") {
        most = std::max<int64_t>(most, std::distance(std::filesystem::directory_iterator("/proc/self/task"), {}));
      }
      return cudaSuccess;
    };
    ServerArgs args = small_args();
    args.num_threads = num_threads;
    Engine{args}.shutdown();
    return most;
  };
  const int64_t alone = threads_while_loading(1);
  EXPECT_EQ(threads_while_loading(4), alone + 3);
  EXPECT_EQ(threads_while_loading(1), alone);
}

TEST(CudaFaults, TwentyEnginesGiveAllBack) {
  FakeCuda cuda;
  cuda.cards.resize(2);
  for (int i = 0; i < 20; ++i) {
    ServerArgs args = small_args(i % 2 == 0 ? "bfloat16" : "float16");
    args.device = i % 4 < 2 ? "cuda:1" : "cuda:0";
    Engine engine(args);
    EXPECT_TRUE(is_whole(engine.generate(request_of(30, 5)).at(0), 5));
    EXPECT_GT(cuda.bytes_used(i % 4 < 2 ? 1 : 0), size_t{1} << 20);
    EXPECT_EQ(cuda.bytes_used(i % 4 < 2 ? 0 : 1), 0u);
    if (i % 3 == 0) engine.shutdown();
  }
  EXPECT_EQ(cuda.num_held(), 0);
}

// --- cards of two kinds

TEST(CudaFaults, EachCardHasItsOwnFacts) {
  FakeCuda cuda;
  cuda.cards.resize(70);
  PerDevice fact;
  int asked = 0;
  for (int round = 0; round < 3; ++round) {
    for (const int device : {0, 1, 63, 69}) {
      cudaSetDevice(device);
      const auto find = [&] {
        ++asked;
        return 10 * device;
      };
      EXPECT_EQ(fact.get(find), 10 * device);
    }
  }
  EXPECT_EQ(asked, 3 + 3);  // beyond 64 devices it is asked every time
}

// A product in clusters fills the card it runs on, not the one that came first. What a card holds is asked once in a
// process: these two are no other test's.
TEST(CudaFaults, ProductsFillEachCard) {
  FakeCuda cuda;
  cuda.cards.resize(12);
  cuda.cards[10].num_sms = 132, cuda.cards[10].clusters = 30;
  cuda.cards[11].num_sms = 78, cuda.cards[11].clusters = 16;
  std::map<int, std::set<unsigned>> blocks;
  cuda.on_launch = [&](int device, unsigned count) { blocks[device].insert(count); };
  for (const bool deterministic : {false, true}) {
    for (const char* const device : {"cuda:10", "cuda:11"}) {
      const auto backend = make_backend(device, {}, deterministic);
      const int64_t n = 14336, k = 128, rows = 40;
      RawTensor tensor;
      tensor.name = "w";
      tensor.type = WeightType::kBF16;
      tensor.shape = {n, k};
      const auto zeros = std::make_shared<std::vector<std::byte>>(static_cast<size_t>(n * k * 2));
      tensor.data = zeros->data();
      tensor.owned = zeros;
      const RawTensor* const part = &tensor;
      const auto weight = backend->pack({&part, 1}, {}, Packing::kBFloat16);
      const auto matrix = [&](int64_t cols) {
        return Matrix{backend->allocate(static_cast<size_t>(rows * cols * 4)), rows, cols, cols, DType::kF32};
      };
      const Matrix x = matrix(k), out = matrix(n);
      backend->linear({.x = x, .weight = weight.get(), .out = out});
      for (const Matrix& one : {x, out}) backend->free(static_cast<std::byte*>(one.data));
    }
  }
  EXPECT_TRUE(blocks[10].contains(120)) << "30 clusters of 4";
  EXPECT_TRUE(blocks[11].contains(64)) << "16 clusters of 4";
  EXPECT_FALSE(blocks[11].contains(120));
}

}  // namespace
}  // namespace tokenmill::testing
