// What goes wrong with a card at start: none, an old one, a full one, one in use, memory that runs out. On cards that
// are not there (fake_cuda.h): needs none.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cuda/faults_testing.h"
#include "ops/backend_registry.h"
#include "util/expect_error.h"

namespace tokenmill::testing {
namespace {

// --- a device that cannot be used

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

}  // namespace
}  // namespace tokenmill::testing
