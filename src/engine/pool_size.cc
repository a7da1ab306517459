#include "engine/pool_size.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "engine/text_repr.h"
#include "tokenmill/error.h"

namespace tokenmill {

std::string gib_text(int64_t bytes) { return fmt::format("{:.2f}", static_cast<double>(bytes) / (1 << 30)); }

namespace {

// Block ids are 32-bit, and so are token counts in a step.
constexpr int64_t kBlocksMax = std::numeric_limits<int32_t>::max() / 64 - 2;

// Bytes that weights and pool may take together, less the weights.
int64_t static_limit(const ServerArgs& args, const PoolFacts& facts) {
  const int64_t before =
      facts.available_before_load > 0 ? facts.available_before_load : facts.available_bytes + facts.weight_bytes;
  return static_cast<int64_t>(static_cast<double>(before) * args.mem_fraction_static) - facts.weight_bytes;
}

}  // namespace

int32_t choose_num_blocks(const ServerArgs& args, const PoolFacts& facts) {
  const int64_t page = *args.page_size;
  const bool memory_known = facts.available_bytes > 0;
  const int64_t bytes_max =
      memory_known ? std::min(facts.available_bytes, static_limit(args, facts)) : std::numeric_limits<int64_t>::max();
  if (args.max_total_tokens) {
    require_rule(*args.max_total_tokens >= page, "max_total_tokens",
                 "at least page_size (" + std::to_string(page) + ")", args.max_total_tokens);
    const int64_t blocks = *args.max_total_tokens / page;
    if (blocks > kBlocksMax || blocks > bytes_max / facts.block_bytes) {
      throw Error(ErrorKind::kRuntime,
                  fmt::format("Not enough memory. Please try to increase mem_fraction_static or reduce "
                              "max_total_tokens: {} tokens of KV cache need {:.2f} GB, and {} GB may be used.",
                              *args.max_total_tokens,
                              static_cast<double>(blocks) * static_cast<double>(facts.block_bytes) / (1 << 30),
                              gib_text(std::max<int64_t>(bytes_max, 0))));
    }
    return static_cast<int32_t>(blocks);
  }
  int64_t blocks = kBlocksMax;
  if (!facts.own_memory) {
    const int64_t context_blocks = (facts.context_length + page - 1) / page;
    if (context_blocks <= kBlocksMax / *args.max_running_requests) blocks = context_blocks * *args.max_running_requests;
    if (memory_known) blocks = std::min(blocks, facts.available_bytes / 4 / facts.block_bytes);
  }
  if (memory_known) blocks = std::min(blocks, bytes_max / facts.block_bytes);
  if (blocks < 1) {
    throw Error(ErrorKind::kRuntime,
                fmt::format("Not enough memory. Please try to increase mem_fraction_static or reduce page_size: one KV "
                            "block needs {} GB, and {} GB may be used.",
                            gib_text(facts.block_bytes), gib_text(std::max<int64_t>(bytes_max, 0))));
  }
  return static_cast<int32_t>(blocks);
}

int64_t choose_running_requests(int64_t max_total_num_tokens, int64_t context_length) {
  const int64_t by_pool =
      static_cast<int64_t>(static_cast<double>(max_total_num_tokens) / static_cast<double>(context_length) * 512);
  return std::clamp<int64_t>(std::clamp<int64_t>(by_pool, 2048, 4096) + 1, 1,
                             std::max<int64_t>(max_total_num_tokens / 2, 1));
}

}  // namespace tokenmill
