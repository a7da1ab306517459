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

namespace {

// A window and what a step adds to it, at any place in its first block.
int64_t window_span(const PoolFacts& facts, int64_t page, int64_t tokens) {
  return (facts.window + tokens + 2 * page - 2) / page;
}

// What the window layers need for certain beside `full` blocks of the others, or are content with.
int64_t window_blocks(const ServerArgs& args, const PoolFacts& facts, int64_t full, bool roomy) {
  const int64_t page = *args.page_size, least = window_span(facts, page, facts.chunk_tokens) + 1;
  const int64_t running = args.max_running_requests.value_or(std::numeric_limits<int32_t>::max());
  const int64_t all = running * window_span(facts, page, 1) + facts.chunk_tokens / page + full / 4;
  const int64_t content = std::min(all, full / 2);
  return std::min(full, std::max(roomy ? all : content, least));
}

}  // namespace

PoolBlocks choose_pool_blocks(const ServerArgs& args, const PoolFacts& facts) {
  if (facts.window == 0) return {choose_num_blocks(args, facts), 0};
  PoolFacts together = facts;  // every token in all layers: what fits in any case
  together.block_bytes = facts.block_bytes + facts.window_block_bytes;
  const auto bytes = [&](int64_t full, int64_t window) {
    return static_cast<double>(full) * static_cast<double>(facts.block_bytes) +
           static_cast<double>(window) * static_cast<double>(facts.window_block_bytes);
  };
  const int64_t page = *args.page_size;
  double bytes_max = std::numeric_limits<double>::infinity();
  if (facts.available_bytes > 0) {
    bytes_max = static_cast<double>(std::min(facts.available_bytes, static_limit(args, facts)));
    if (!facts.own_memory && !args.max_total_tokens) {
      bytes_max = std::min(bytes_max, static_cast<double>(facts.available_bytes) / 4);
    }
  }
  if (args.max_total_tokens) {
    const int64_t full = *args.max_total_tokens / page;
    for (const bool roomy : {true, false}) {
      if (full < 1 || full > kBlocksMax) break;
      const int64_t window = window_blocks(args, facts, full, roomy);
      if (bytes(full, window) <= bytes_max) return {static_cast<int32_t>(full), static_cast<int32_t>(window)};
    }
    return {choose_num_blocks(args, together), choose_num_blocks(args, together)};  // says what is wrong
  }
  int64_t low = choose_num_blocks(args, together), high = kBlocksMax;
  if (!facts.own_memory) {
    const int64_t context_blocks = (facts.context_length + page - 1) / page;
    if (context_blocks <= kBlocksMax / *args.max_running_requests) high = context_blocks * *args.max_running_requests;
  }
  while (low < high) {  // the most that fits
    const int64_t middle = low + (high - low + 1) / 2;
    if (bytes(middle, window_blocks(args, facts, middle, false)) <= bytes_max) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const int64_t roomy = window_blocks(args, facts, low, true);
  const int64_t window = bytes(low, roomy) <= bytes_max ? roomy : window_blocks(args, facts, low, false);
  return {static_cast<int32_t>(low), static_cast<int32_t>(window)};
}

int64_t choose_running_requests(int64_t max_total_num_tokens, int64_t context_length) {
  const int64_t by_pool =
      static_cast<int64_t>(static_cast<double>(max_total_num_tokens) / static_cast<double>(context_length) * 512);
  return std::clamp<int64_t>(std::clamp<int64_t>(by_pool, 2048, 4096) + 1, 1,
                             std::max<int64_t>(max_total_num_tokens / 2, 1));
}

}  // namespace tokenmill
