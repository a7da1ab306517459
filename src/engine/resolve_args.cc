#include "engine/resolve_args.h"

#include <random>

#include "engine/text_repr.h"
#include "ops/backend_registry.h"

namespace tokenmill {
namespace {

constexpr int64_t kCpuRunningRequests = 256;

template <class T, class Value>
void fill(std::optional<T>& field, Value value) {
  if (!field) field = std::move(value);
}

}  // namespace

ServerArgs resolve_server_args(ServerArgs args) {
  args.validate();
  fill(args.tokenizer_path, args.model_path);
  fill(args.served_model_name, args.model_path);
  fill(args.device, default_device());
  const DeviceDefaults device = device_defaults(*args.device);
  // On a device with memory of its own the size of its pool decides (choose_running_requests).
  if (!device.own_memory) fill(args.max_running_requests, kCpuRunningRequests);
  fill(args.chunked_prefill_size, device.chunked_prefill_size);
  fill(args.page_size, device.page_size);
  fill(args.enable_deterministic_inference, device.always_deterministic);
  fill(args.max_queued_requests, int64_t{1} << 20);
  if (!args.random_seed) args.random_seed = static_cast<int64_t>(std::random_device{}() & 0x3fffffffu);
  return args;
}

}  // namespace tokenmill
