// Engines and the cards they run on: defaults, memory, several engines on one card and on two, and what is said where
// there is no such card.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "cuda/engine_cuda_testing.h"
#include "ops/backend_registry.h"
#include "tokenmill/engine.h"
#include "util/expect_error.h"

namespace tokenmill::testing {
namespace {

TEST(EngineCudaErrors, WithoutADeviceTheErrorSaysSo) {
  if (num_cuda_devices() > 0) GTEST_SKIP() << "not run: there is a CUDA device";
  const ServerArgs args = args_for("stories260k", "cuda");
  if (has_cuda()) {
    EXPECT_LOAD_ERROR(Engine{args}, ErrorKind::kRuntime, "No CUDA device", "device='cpu'");
  } else {
    EXPECT_LOAD_ERROR(Engine{args}, ErrorKind::kUnsupported, "needs a build with CUDA");
  }
  ServerArgs any = args;
  any.device.reset();
  EXPECT_EQ(Engine(any).server_args().device, "cpu");
}

TEST_F(EngineCuda, DefaultsAreTheDevices) {
  ServerArgs args = args_for("stories260k", "cuda");
  args.device.reset();
  args.max_running_requests.reset();
  Engine engine(args);
  EXPECT_EQ(engine.server_args().device, "cuda");
  EXPECT_EQ(engine.server_args().page_size, 16);
  EXPECT_EQ(engine.server_args().chunked_prefill_size, 8192);
  EXPECT_EQ(engine.server_args().max_running_requests, 4097);  // 16,384 tokens for contexts of 512
  EXPECT_EQ(engine.server_args().enable_deterministic_inference, false);
}

TEST_F(EngineCuda, PoolByMemFractionStatic) {
  ServerArgs args = args_for("llama-untied", "cuda", "bfloat16");
  args.max_total_tokens.reset();
  args.mem_fraction_static = 0.02;
  int64_t tokens = 0;
  {
    Engine engine(args);
    tokens = *engine.server_args().max_total_tokens;
    EXPECT_GT(tokens, 100'000);
    EXPECT_EQ(engine.generate(random_requests(1, 100, 4, 1)).at(0).output_ids.size(), 4u);
  }
  args.mem_fraction_static = 0.04;
  EXPECT_NEAR(static_cast<double>(*Engine(args).server_args().max_total_tokens), 2.0 * static_cast<double>(tokens),
              0.1 * static_cast<double>(tokens));
  args.max_total_tokens = int64_t{1} << 40;
  EXPECT_LOAD_ERROR(Engine{args}, ErrorKind::kRuntime, "Not enough memory. Please try to increase mem_fraction_static",
                    "max_total_tokens");
}

TEST_F(EngineCuda, NoSuchDevice) {
  EXPECT_LOAD_ERROR(Engine{args_for("stories260k", "cuda:99")}, ErrorKind::kRuntime, "There is no CUDA device 99");
}

TEST_F(EngineCuda, TwentyEnginesReturnTheirMemory) {
  const auto available = [] { return make_backend("cuda", CpuOptions{})->available_memory(); };
  ServerArgs args = args_for("llama-tied", "cuda", "bfloat16");
  args.max_total_tokens = 1 << 18;
  const auto use = [&] { Engine(args).generate(random_requests(6, 100, 12, 2)); };
  use();
  const int64_t before = available();
  for (int i = 0; i < 20; ++i) use();
  std::printf("[ device   ] %.1f MiB available after the first engine, %.1f MiB after twenty more\n",
              static_cast<double>(before) / (1 << 20), static_cast<double>(available()) / (1 << 20));
  EXPECT_GE(available(), before - (8 << 20));
}

TEST_F(EngineCuda, SeveralEnginesOnOneCard) {
  Engine first(args_for("stories260k", "cuda")), second(args_for("qwen3", "cuda:0", "bfloat16"));
  const auto requests = random_requests(20, std::min(first.vocab_size(), second.vocab_size()), 40, 13);
  const auto want_first = ids_of(first.generate(requests)), want_second = ids_of(second.generate(requests));
  for (int round = 0; round < 3; ++round) {
    auto one = first.generate_async(requests), two = second.generate_async(requests);
    EXPECT_EQ(ids_of(one.get()), want_first);
    EXPECT_EQ(ids_of(two.get()), want_second);
  }
}

TEST_F(EngineCuda, TwoCardsAtOnce) {
  if (num_cuda_devices() < 2) GTEST_SKIP() << "not run: there is one CUDA device";
  const auto available = [](const char* device) { return make_backend(device, CpuOptions{})->available_memory(); };
  (void)available("cuda:1");  // what a card needs to be used at all is taken now
  const int64_t first_card = available("cuda:0"), second_card = available("cuda:1");
  {
    ServerArgs args = args_for("llama-untied", "cuda:1", "bfloat16");
    args.max_total_tokens = 1 << 20;
    Engine second(args);
    EXPECT_GT(available("cuda:0"), first_card - (64 << 20)) << "memory of the other card";
    args.device = "cuda:0";
    Engine first(args);
    auto requests = random_requests(60, first.vocab_size(), 40, 37);
    for (size_t i = 0; i < requests.size(); i += 2) {
      requests[i].sampling_params.temperature = 1;
      requests[i].sampling_params.sampling_seed = i;
    }
    const auto want = ids_of(first.generate(requests));
    for (int round = 0; round < 3; ++round) {
      auto one = first.generate_async(requests), two = second.generate_async(requests);
      EXPECT_EQ(ids_of(one.get()), want);
      EXPECT_EQ(ids_of(two.get()), want);
    }
  }
  EXPECT_GT(available("cuda:0"), first_card - (64 << 20));
  EXPECT_GT(available("cuda:1"), second_card - (64 << 20));
}

}  // namespace
}  // namespace tokenmill::testing
