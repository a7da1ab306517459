// What goes wrong with a card: none, an old one, a full one, one in use, memory that runs out at start, while a graph
// is captured and in the middle of a step, kernels that fail. On cards that are not there (fake_cuda.h): needs none.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cuda/fake_cuda.h"
#include "ops/backend_registry.h"
#include "ops/cuda/per_device.h"
#include "tokenmill/engine.h"
#include "util/expect_error.h"

namespace tokenmill::testing {
namespace {

const std::filesystem::path kTinyFolder = std::filesystem::path(TOKENMILL_TEST_DATA) / "tiny";
constexpr int64_t kGiB = int64_t{1} << 30;

ServerArgs small_args(const std::string& dtype = "bfloat16") {
  ServerArgs args;
  args.model_path = (kTinyFolder / "llama-untied").string();
  args.device = "cuda";
  args.dtype = dtype;
  args.skip_tokenizer_init = true;
  args.log_level = "error";
  args.max_total_tokens = 1 << 12;
  args.max_running_requests = 32;
  args.chunked_prefill_size = 256;
  args.random_seed = 1;
  return args;
}

Request request_of(size_t prompt_tokens, int64_t new_tokens) {
  Request request;
  request.input_ids = std::vector<int32_t>(prompt_tokens, 5);
  request.sampling_params.max_new_tokens = new_tokens;
  request.sampling_params.ignore_eos = true;
  return request;
}

bool is_whole(const Output& output, size_t tokens) {
  return output.output_ids.size() == tokens && output.meta_info.finish_reason->type == FinishReason::Type::kLength;
}

// Errors of one call, from the nth time it is made, `times` times.
std::function<cudaError_t(std::string_view)> failing(std::string call, int nth, cudaError_t error, int times = 1) {
  return [=, made = 0](std::string_view name) mutable {
    if (name != call) return cudaSuccess;
    ++made;
    return made >= nth && made < nth + times ? error : cudaSuccess;
  };
}
constexpr int kAlways = 1 << 30;

// --- a device that cannot be used
// -------------------------------------------------------------------------------------
struct Unusable {
  const char* name;
  std::function<void(FakeCuda&)> set;
  const char* device;
  std::vector<std::string> parts;  // of the message
  const char* default_device;      // what is used where none is asked for
};

std::vector<Unusable> unusable_devices() {
  const auto fails = [](const char* call, cudaError_t error) {
    return [=](FakeCuda& cuda) { cuda.answer = failing(call, 1, error, kAlways); };
  };
  return {
      {"no driver",
       [](FakeCuda& cuda) { cuda.driver_version = 0; },
       "cuda",
       {"No CUDA device: there is no NVIDIA driver (libcuda.so.1).", "device='cpu'"},
       "cpu"},
      {"old driver",
       [](FakeCuda& cuda) { cuda.driver_version = 11080; },
       "cuda",
       {"No CUDA device: the NVIDIA driver is for CUDA 11.8, and this build needs one for", "update the driver",
        "device='cpu'"},
       "cpu"},
      {"no card",
       [](FakeCuda& cuda) { cuda.cards.clear(); },
       "cuda",
       {"No CUDA device: the driver sees no card (CUDA_VISIBLE_DEVICES may hide it)", "device='cpu'"},
       "cpu"},
      {"no such card",
       [](FakeCuda& cuda) { cuda.cards.resize(2); },
       "cuda:99",
       {"There is no CUDA device 99: this machine has 2, counted from 0"},
       "cuda"},
      {"old card",
       [](FakeCuda& cuda) { cuda.cards[0].major = 7, cuda.cards[0].minor = 5, cuda.cards[0].name = "Fake T4"; },
       "cuda:0",
       {"CUDA device 0 (Fake T4) has compute capability 7.5; 8.0 or later is needed", "device='cpu'"},
       "cpu"},
      {"in use",
       fails("cudaSetDevice", cudaErrorDevicesUnavailable),
       "cuda",
       {"CUDA device 0 (Fake H100) is in use by another process alone", "cudaErrorDevicesUnavailable", "nvidia-smi",
        "'cuda:N'"},
       "cuda"},
      {"no memory for a context",
       fails("cudaSetDevice", cudaErrorMemoryAllocation),
       "cuda",
       {"CUDA device 0 (Fake H100) is full", "nvidia-smi", "mem_fraction_static", "'cuda:N'"},
       "cuda"},
      {"next to no memory",
       [](FakeCuda& cuda) { cuda.cards[0].used_by_others = cuda.cards[0].total - (size_t{11} << 20); },
       "cuda",
       {"CUDA device 0 (Fake H100) is full: 0.01 GB of 80.00 GB free", "mem_fraction_static"},
       "cuda"},
      {"cuBLAS without memory",
       fails("cublasCreate", cudaErrorMemoryAllocation),
       "cuda",
       {"CUDA device 0 (Fake H100) is full"},
       "cuda"},
      {"another fault",
       fails("cudaSetDevice", cudaErrorECCUncorrectable),
       "cuda",
       {"CUDA device 0 (Fake H100) cannot be used: ", "cudaErrorECCUncorrectable"},
       "cuda"},
      {"another fault of counting",
       fails("cudaGetDeviceCount", cudaErrorSystemNotReady),
       "cuda",
       {"No CUDA device: ", "cudaErrorSystemNotReady"},
       "cpu"},
      {"no code for it",
       fails("cudaFuncGetAttributes", cudaErrorNoKernelImageForDevice),
       "cuda",
       {"CUDA device 0 (Fake H100) has compute capability 9.0, for which this build has no kernels",
        "cudaErrorNoKernelImageForDevice", "CMAKE_CUDA_ARCHITECTURES"},
       "cuda"},
  };
}

TEST(CudaFaults, ADeviceThatCannotBeUsedSaysWhyAndWhatToDo) {
  for (const Unusable& unusable : unusable_devices()) {
    SCOPED_TRACE(unusable.name);
    FakeCuda cuda;
    unusable.set(cuda);
    ServerArgs args = small_args();
    args.device = unusable.device;
    for (const std::string& part : unusable.parts) EXPECT_LOAD_ERROR(Engine{args}, ErrorKind::kRuntime, part);
    EXPECT_EQ(cuda.num_held(), 0);
    EXPECT_EQ(default_device(), unusable.default_device);
    args.device = "cpu";  // the process lives on
    args.dtype = "float32";
    EXPECT_TRUE(is_whole(Engine(args).generate(request_of(5, 3)).at(0), 3));
  }
}

// --- memory at start
// --------------------------------------------------------------------------------------------------
struct Lines {
  std::mutex mutex;
  std::vector<std::string> all;
  LogSink sink() {
    return [this](LogLevel, const std::string& line) {
      const std::lock_guard lock(mutex);
      all.push_back(line.substr(std::min(line.size(), line.find("] ") + 2)));
    };
  }
  size_t index(const std::string& part) {  // of the first line with it
    const std::lock_guard lock(mutex);
    const auto found = std::ranges::find_if(all, [&](const std::string& line) { return line.find(part) != line.npos; });
    return static_cast<size_t>(found - all.begin());
  }
  std::string find(const std::string& part) {
    const size_t at = index(part);
    return at < all.size() ? all[at] : "";
  }
  int count(const std::string& part) {
    const std::lock_guard lock(mutex);
    return static_cast<int>(
        std::ranges::count_if(all, [&](const std::string& line) { return line.find(part) != std::string::npos; }));
  }
};

TEST(CudaFaults, ThePoolTakesWhatTheContractSaysAndTheLogTellsIt) {
  FakeCuda cuda;
  for (int round = 0; round < 2; ++round) {  // with the card to itself, and beside an engine that has half of it
    cuda.cards[0].used_by_others = static_cast<size_t>(round == 0 ? kGiB / 2 : 40 * kGiB);
    ServerArgs args = small_args();
    args.log_level = "info";
    args.max_total_tokens.reset();
    args.max_running_requests.reset();
    Lines lines;
    Engine engine(args, lines.sink());
    const auto info = nlohmann::json::parse(engine.server_info_json());
    const double available = std::strtod(
        lines.find("Load weight begin. avail mem=").substr(std::strlen("Load weight begin. avail mem=")).c_str(),
        nullptr);
    const int64_t weights = info.at("model").at("weight_bytes"),
                  token_bytes = info.at("model").at("kv_bytes_per_token");
    const int64_t tokens = info.at("max_total_num_tokens");
    const double wanted = (available * 0.88 * kGiB - static_cast<double>(weights)) / static_cast<double>(token_bytes);
    EXPECT_NEAR(static_cast<double>(tokens), wanted, 0.006 * kGiB / static_cast<double>(token_bytes) + 16);
    EXPECT_EQ(tokens % 16, 0);
    const char* const order[] = {"server_args=ServerArgs(",
                                 "Load weight begin. avail mem=",
                                 "Loading safetensors checkpoint shards: 100% Completed | 1/1",
                                 "Load weight end. type=LlamaForCausalLM, dtype=bfloat16, avail mem=",
                                 "Memory pool end. avail mem=",
                                 "Capture cuda graph begin. This can take up to several minutes.",
                                 "max_total_num_tokens="};
    size_t last = 0;
    for (const char* const part : order) {
      const size_t at = lines.index(part);
      ASSERT_LT(at, lines.all.size()) << part;
      EXPECT_GE(at, last) << part;
      last = at;
    }
    engine.shutdown();
    EXPECT_EQ(cuda.num_held(), 0);
    EXPECT_EQ(cuda.bytes_used(), 0u);
  }
}

TEST(CudaFaults, OutOfMemoryAtStartSaysWhatIsNeededAndAvailableAndWhatToLower) {
  FakeCuda cuda;
  ServerArgs args = small_args();
  args.max_total_tokens = int64_t{1} << 31;
  EXPECT_LOAD_ERROR(Engine{args}, ErrorKind::kRuntime,
                    "Not enough memory. Please try to increase mem_fraction_static or reduce max_total_tokens: "
                    "2147483648 tokens of KV cache need",
                    " GB may be used");
  args.max_total_tokens.reset();
  args.mem_fraction_static = 1e-9;
  EXPECT_LOAD_ERROR(Engine{args}, ErrorKind::kRuntime,
                    "Not enough memory. Please try to increase mem_fraction_static or reduce page_size: one KV block "
                    "needs 0.00 GB, and 0.00 GB may be used");
  // All for weights and pool, nothing for the work space.
  args.mem_fraction_static = 0.9999999;
  EXPECT_LOAD_ERROR(Engine{args}, ErrorKind::kRuntime,
                    "Not enough memory. Please try to lower mem_fraction_static or reduce max_total_tokens",
                    "chunked_prefill_size", " asked, 0.00 GB of 80.00 GB free on the CUDA device");
  // Less than the weights: told before they are read, or, where only padding and the like are too much, at a tensor.
  args.mem_fraction_static = 0.88;
  cuda.cards[0].used_by_others = cuda.cards[0].total - (size_t{32} << 20) - 4096;
  EXPECT_LOAD_ERROR(Engine{args}, ErrorKind::kRuntime, "Not enough memory for the model", "its weights need",
                    "GB are available on device 'cuda'", "end what else holds the device's memory");
  cuda.cards[0].used_by_others = 0;
  cuda.answer = failing("cudaMalloc", 3, cudaErrorMemoryAllocation);
  EXPECT_LOAD_ERROR(Engine{args}, ErrorKind::kRuntime, "Not enough memory for the model's weights, at tensor ",
                    "asked, ", "end what else holds the device's memory");
  EXPECT_EQ(cuda.num_held(), 0);
}

// Whatever call of the start fails, the first time, the second or the last: an error, or an engine that works; nothing
// is left behind.
TEST(CudaFaults, AnyCallOfTheStartMayFail) {
  FakeCuda cuda;
  const ServerArgs args = small_args();
  Engine(args).shutdown();
  const auto calls = cuda.calls();
  int errors = 0, engines = 0;
  for (const auto& [call, count] : calls) {
    for (const int nth : std::set<int>{1, std::min(2, count), count}) {
      for (const cudaError_t error : {cudaErrorMemoryAllocation, cudaErrorLaunchFailure}) {
        SCOPED_TRACE(call + " " + std::to_string(nth) + " of " + std::to_string(count) + " " + cudaGetErrorName(error));
        cuda.set_answer(failing(call, nth, error));
        try {
          Engine engine(args);
          ++engines;
          cuda.set_answer(nullptr);
          EXPECT_TRUE(is_whole(engine.generate(request_of(20, 6)).at(0), 6));
        } catch (const Error& problem) {
          ++errors;
          EXPECT_EQ(problem.kind(), ErrorKind::kRuntime) << problem.what();
          if (error == cudaErrorMemoryAllocation && call != "cudaGetDeviceCount") {
            EXPECT_TRUE(std::string(problem.what()).find("emory") != std::string::npos ||
                        std::string(problem.what()).find("is full") != std::string::npos)
                << problem.what();
          }
        }
        EXPECT_EQ(cuda.num_held(), 0);
        EXPECT_EQ(cuda.bytes_used(), 0u);
      }
    }
  }
  cuda.set_answer(nullptr);
  std::printf("[ faults   ] %zu calls: %d errors, %d engines that do without\n", calls.size(), errors, engines);
  EXPECT_GT(errors, 40);
  EXPECT_GT(engines, 4);
}

// --- memory while it runs
// --------------------------------------------------------------------------------------------- A graph that cannot be
// captured: the step runs as it is. Once more is tried; then the log says so, once a size.
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
    EXPECT_EQ(lines.count("cudaErrorMemoryAllocation). A lower mem_fraction_static or max_total_tokens leaves more."),
              4);
    const int tried = cuda.calls()[call];
    EXPECT_TRUE(is_whole(engine.generate(request_of(9, 8)).at(0), 8));
    EXPECT_EQ(cuda.calls()[call], tried) << "tried again for nothing";
    engine.shutdown();
    EXPECT_EQ(cuda.num_held(), 0);
  }
}

TEST(CudaFaults, ACaptureThatFailsOnceIsMadeLater) {
  FakeCuda cuda;
  ServerArgs args = small_args();
  args.log_level = "warning";
  args.cuda_graph_max_bs = 1;
  cuda.set_answer(failing("cudaGraphInstantiate", 1, cudaErrorMemoryAllocation));
  Lines lines;
  Engine engine(args, lines.sink());
  EXPECT_TRUE(is_whole(engine.generate(request_of(9, 8)).at(0), 8));
  EXPECT_EQ(lines.all.size(), 0u);
  EXPECT_GE(cuda.calls()["cudaGraphLaunch"], 7);
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
// ---------------------------------------------------------------------------------------------------------- Of a
// kernel that failed the device's next calls tell. The engine ends, typed, in every call; the process lives.
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

// --- options and what is given back
// -----------------------------------------------------------------------------------
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
// -----------------------------------------------------------------------------------------------
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

// A product in clusters fills the card it runs on, not the one that came first.
TEST(CudaFaults, ProductsFillEachCard) {
  FakeCuda cuda;
  cuda.cards.resize(2);
  cuda.cards[0].num_sms = 132, cuda.cards[0].clusters = 30;
  cuda.cards[1].num_sms = 78, cuda.cards[1].clusters = 16;
  std::set<unsigned> blocks[2];
  cuda.on_launch = [&](int device, unsigned count) { blocks[device].insert(count); };
  for (const bool deterministic : {false, true}) {
    for (const char* const device : {"cuda:0", "cuda:1"}) {
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
  EXPECT_TRUE(blocks[0].contains(120)) << "30 clusters of 4";
  EXPECT_TRUE(blocks[1].contains(64)) << "16 clusters of 4";
  EXPECT_FALSE(blocks[1].contains(120));
}

}  // namespace
}  // namespace tokenmill::testing
