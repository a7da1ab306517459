// A real card that is full, by this process or another: what the engine says at start, and that what runs out of memory
// in a step ends its requests only. What cannot be brought about on a real card: faults_cuda_test.cc.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "cuda/engine_cuda_testing.h"
#include "ops/backend_registry.h"
#include "tokenmill/engine.h"
#include "util/expect_error.h"
#include "util/scoped_variable.h"

namespace tokenmill::testing {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr const char* kFullCard = "TOKENMILL_START_ON_A_FULL_CARD";

class EngineCudaMemory : public EngineCuda {};

// Holds the card's memory but for `left` bytes.
class Holder {
 public:
  explicit Holder(int64_t left) : backend_(make_backend("cuda", CpuOptions{})) {
    // In ever smaller pieces: what is free is not in one.
    for (int64_t piece = backend_->available_memory() - left; piece >= kMiB && backend_->available_memory() > left;) {
      piece = std::min(piece, backend_->available_memory() - left);
      try {
        pieces_.push_back(backend_->allocate(static_cast<size_t>(std::max(piece, int64_t{1}))));
      } catch (const Error&) {
        piece /= 2;
      }
    }
  }
  ~Holder() {
    for (std::byte* const piece : pieces_) backend_->free(piece);
  }
  Holder(const Holder&) = delete;
  Holder& operator=(const Holder&) = delete;
  int64_t left() const { return backend_->available_memory(); }

 private:
  std::unique_ptr<Backend> backend_;
  std::vector<std::byte*> pieces_;
};

// Wide enough for its work space to be tens of MiB; random weights.
ServerArgs wide_args() {
  ServerArgs args = args_for("llama-untied", "cuda", "bfloat16");
  args.load_format = "dummy";
  args.json_model_override_args = R"({"hidden_size": 1024, "intermediate_size": 8192, "num_attention_heads": 16,
                                      "num_key_value_heads": 8, "head_dim": 64})";
  return args;
}

std::vector<Request> long_requests() {
  std::vector<Request> requests(16);
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].input_ids = std::vector<int32_t>(400, static_cast<int32_t>(i + 3));
    requests[i].sampling_params.max_new_tokens = 8;
    requests[i].sampling_params.temperature = 0;
    requests[i].sampling_params.ignore_eos = true;
  }
  return requests;
}

int count_aborted(const std::vector<Output>& outputs) {
  int aborted = 0;
  for (const Output& output : outputs) {
    if (output.meta_info.finish_reason->type != FinishReason::Type::kAbort) {
      EXPECT_EQ(output.output_ids.size(), 8u);
      continue;
    }
    ++aborted;
    EXPECT_NE(output.meta_info.finish_reason->message.find("Not enough memory"), std::string::npos)
        << output.meta_info.finish_reason->message;
  }
  return aborted;
}

TEST_F(EngineCudaMemory, AFullCardSaysWhatIsNeededAndAvailable) {
  const ServerArgs args = wide_args();
  {
    const Holder holder(12 * kMiB);
    EXPECT_LOAD_ERROR(Engine{args}, ErrorKind::kRuntime, "CUDA device 0 (", "is full: 0.0", "too little to start on",
                      "nvidia-smi", "mem_fraction_static", "device='cpu'");
  }
  {
    const Holder holder(120 * kMiB);
    EXPECT_LOAD_ERROR(Engine{args}, ErrorKind::kRuntime, "Not enough memory for the model", "its weights need",
                      "are available on device 'cuda'");
  }
  {
    const Holder holder(1024 * kMiB);
    ServerArgs large = args;
    large.max_total_tokens = 1 << 20;
    EXPECT_LOAD_ERROR(Engine{large}, ErrorKind::kRuntime,
                      "Not enough memory. Please try to increase "
                      "mem_fraction_static or reduce max_total_tokens: 1048576 tokens of KV cache need ");
    large.max_total_tokens.reset();
    large.mem_fraction_static = 0.999;
    EXPECT_LOAD_ERROR(Engine{large}, ErrorKind::kRuntime, "Not enough memory. Please try to lower mem_fraction_static",
                      "GB asked, ", "free on the CUDA device");
    EXPECT_EQ(count_aborted(Engine(args).generate(long_requests())), 0) << "what is left is enough for this one";
  }
  EXPECT_EQ(count_aborted(Engine(args).generate(long_requests())), 0);
}

// Run by the test below in a process of its own.
TEST_F(EngineCudaMemory, StartsBesideAnother) {
  if (std::getenv(kFullCard) == nullptr) GTEST_SKIP() << "not run: it is a part of AnotherProcessHasFilledTheCard";
  EXPECT_LOAD_ERROR(Engine{wide_args()}, ErrorKind::kRuntime, "CUDA device 0 (", "is full", "nvidia-smi");
}

TEST_F(EngineCudaMemory, AnotherProcessHasFilledTheCard) {
  const Holder holder(4 * kMiB);
  const ScopedVariable variable(kFullCard, "1");
  const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
  FILE* const child = popen(("'" + self + "' --gtest_filter='*StartsBesideAnother' 2>&1").c_str(), "r");
  ASSERT_NE(child, nullptr);
  std::string said;
  for (char text[512]; std::fgets(text, sizeof(text), child) != nullptr;) said += text;
  EXPECT_EQ(pclose(child), 0) << said;
  EXPECT_NE(said.find("[       OK ]"), std::string::npos) << said;
}

// On a card that others have filled since the start: the memory that steps work in was taken then, but a kernel that
// runs for the first time may find no room for its code.
TEST_F(EngineCudaMemory, StepsOnAFullCardEndTheirRequestsAtMost) {
  for (const bool use_graphs : {false, true}) {
    ServerArgs args = wide_args();
    args.disable_cuda_graph = !use_graphs;
    Engine engine(args);
    const auto requests = long_requests();
    int aborted = 0;
    int64_t left = 0;
    {
      const Holder holder(0);
      left = holder.left();
      aborted = count_aborted(engine.generate(requests));
    }
    std::printf("[ device   ] %.1f MiB left: %d of 16 requests end for lack of memory, %s graphs\n",
                static_cast<double>(left) / kMiB, aborted, use_graphs ? "with" : "without");
    EXPECT_EQ(count_aborted(engine.generate(requests)), 0);
    EXPECT_TRUE(engine.flush_cache());
    Engine fresh(args);
    const auto want = fresh.generate(requests), got = engine.generate(requests);
    for (size_t i = 0; i < requests.size(); ++i) EXPECT_EQ(got[i].output_ids, want[i].output_ids) << i;
  }
}

}  // namespace
}  // namespace tokenmill::testing
