// The rules for the size of the KV pool.
#include "engine/pool_size.h"

#include <gtest/gtest.h>

#include "engine/resolve_args.h"
#include "tokenmill/error.h"
#include "util/expect_error.h"

namespace tokenmill {
namespace {

constexpr int64_t kMiB = 1 << 20, kGiB = 1 << 30;

ServerArgs args_with(const std::function<void(ServerArgs&)>& change = [](ServerArgs&) {}) {
  ServerArgs args;
  args.model_path = "model";
  args.device = "cpu";
  change(args);
  return resolve_server_args(args);
}

TEST(PoolSize, FullContextsWhereMemoryIsAmple) {
  const PoolFacts facts{.context_length = 1000, .block_bytes = 1000, .available_bytes = 64 * kGiB};
  EXPECT_EQ(choose_num_blocks(args_with(), facts), 256 * 32);  // ceil(1000 / 32) = 32 blocks a request
}

TEST(PoolSize, AQuarterOfWhatIsAvailable) {
  const PoolFacts facts{.context_length = 8192, .block_bytes = kMiB, .available_bytes = kGiB};
  EXPECT_EQ(choose_num_blocks(args_with(), facts), 256);
}

TEST(PoolSize, MemFractionStaticBoundsWeightsAndPool) {
  const PoolFacts facts{.context_length = 8192,
                        .block_bytes = kMiB,
                        .available_bytes = kGiB,
                        .available_before_load = 2 * kGiB,
                        .weight_bytes = kGiB};
  EXPECT_EQ(choose_num_blocks(args_with([](ServerArgs& a) { a.mem_fraction_static = 0.5625; }), facts), 128);
  EXPECT_LOAD_ERROR((void)choose_num_blocks(args_with([](ServerArgs& a) { a.mem_fraction_static = 0.4; }), facts),
                    ErrorKind::kRuntime, "Not enough memory. Please try to increase mem_fraction_static or reduce");
}

// Contract section 6: available x mem_fraction_static - weights, whatever the host's rules are.
TEST(PoolSize, MemoryOfTheDevicesOwn) {
  PoolFacts facts{.context_length = 131072,
                  .block_bytes = 16 * 131072,  // Llama-3.1-8B in bf16, 16 tokens
                  .available_bytes = static_cast<int64_t>(63.50 * kGiB),
                  .available_before_load = static_cast<int64_t>(78.59 * kGiB),
                  .weight_bytes = static_cast<int64_t>(15.09 * kGiB),
                  .own_memory = true};
  const auto args = args_with([](ServerArgs& a) { a.page_size = 16; });
  EXPECT_EQ(choose_num_blocks(args, facts), static_cast<int64_t>((78.59 * 0.88 - 15.09) * kGiB) / (16 * 131072));
  facts.available_bytes = 0, facts.available_before_load = 0;
  facts.block_bytes = 1;
  EXPECT_GT(choose_num_blocks(args, facts), 1 << 24);
}

TEST(PoolSize, RunningRequestsByThePool) {
  EXPECT_EQ(choose_running_requests(442913, 131072), 2049);
  EXPECT_EQ(choose_running_requests(100'000'000, 8192), 4097);
  EXPECT_EQ(choose_running_requests(1'000'000, 163840), 3126);
  EXPECT_EQ(choose_running_requests(100, 8192), 50);
  EXPECT_EQ(choose_running_requests(1, 8192), 1);
}

// A model of one full and five window layers, as Gemma 3.
TEST(PoolSize, WindowLayersHaveTheirOwn) {
  PoolFacts facts{.context_length = 32768,
                  .block_bytes = kMiB,
                  .window = 512,
                  .chunk_tokens = 512,
                  .window_block_bytes = 5 * kMiB,
                  .available_bytes = 64 * kGiB};
  // max_total_tokens: what 8 running requests and a chunk need (8 * 17 + 16), and a quarter.
  const auto explicit_args = [](int64_t tokens) {
    return args_with([&](ServerArgs& a) { a.max_running_requests = 8, a.max_total_tokens = tokens; });
  };
  PoolBlocks blocks = choose_pool_blocks(explicit_args(32000), facts);
  EXPECT_EQ(blocks.full, 1000);
  EXPECT_EQ(blocks.window, 8 * 17 + 16 + 250);
  blocks = choose_pool_blocks(explicit_args(3200), facts);  // a small pool: as many as the others
  EXPECT_EQ(blocks.full, 100);
  EXPECT_EQ(blocks.window, 100);
  // A quarter of the memory: 16,384 MiB, of which a full block takes 1 and half a window block 5 / 2.
  blocks = choose_pool_blocks(args_with(), facts);
  EXPECT_EQ(blocks.window, blocks.full / 2);
  EXPECT_LE(blocks.full + 5 * blocks.window, 16384);
  EXPECT_GT(blocks.full + 5 * blocks.window, 16384 - 8);
  facts.window = 0;
  EXPECT_EQ(choose_pool_blocks(args_with(), facts).window, 0);
}

TEST(PoolSize, MaxTotalTokens) {
  const PoolFacts facts{.context_length = 8192, .block_bytes = kMiB, .available_bytes = kGiB};
  EXPECT_EQ(choose_num_blocks(args_with([](ServerArgs& a) { a.max_total_tokens = 1000; }), facts), 31);
  EXPECT_LOAD_ERROR((void)choose_num_blocks(args_with([](ServerArgs& a) { a.max_total_tokens = 31; }), facts),
                    ErrorKind::kValue, "max_total_tokens must be at least page_size (32), got 31.");
  EXPECT_LOAD_ERROR((void)choose_num_blocks(args_with([](ServerArgs& a) { a.max_total_tokens = 1 << 20; }), facts),
                    ErrorKind::kRuntime, "Not enough memory.", "max_total_tokens");
}

}  // namespace
}  // namespace tokenmill
