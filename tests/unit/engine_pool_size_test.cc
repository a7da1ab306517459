// The CPU's rules for the size of the KV pool.
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
