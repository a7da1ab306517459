#include "engine/resolve_args.h"

#include <random>

#include "engine/text_repr.h"

namespace tokenmill {
namespace {

constexpr int64_t kPageSize = 32;  // two 16-key tiles
constexpr int64_t kRunningRequests = 256;
constexpr int64_t kChunkTokens = 512;

template <class T, class Value>
void fill(std::optional<T>& field, Value value) {
  if (!field) field = std::move(value);
}

}  // namespace

ServerArgs resolve_server_args(ServerArgs args) {
  args.validate();
  fill(args.tokenizer_path, args.model_path);
  fill(args.served_model_name, args.model_path);
  fill(args.device, std::string("cpu"));
  fill(args.max_running_requests, kRunningRequests);
  fill(args.chunked_prefill_size, kChunkTokens);
  fill(args.page_size, kPageSize);
  fill(args.enable_deterministic_inference, true);
  fill(args.max_queued_requests, int64_t{1} << 20);
  if (!args.random_seed) args.random_seed = static_cast<int64_t>(std::random_device{}() & 0x3fffffffu);
  return args;
}

}  // namespace tokenmill
