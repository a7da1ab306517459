// ServerArgs::validate: the rules of the options, and what this build cannot honour.
#include <algorithm>
#include <bit>
#include <cmath>
#include <initializer_list>

#include "engine/text_repr.h"
#include "ops/backend_registry.h"
#include "tokenmill/error.h"
#include "tokenmill/server_args.h"

namespace tokenmill {
namespace {

void require_one_of(std::string_view name, std::string_view value, std::initializer_list<std::string_view> choices) {
  if (std::find(choices.begin(), choices.end(), value) != choices.end()) return;
  std::string rule = "one of ";
  for (const std::string_view choice : choices) rule += (choice == *choices.begin() ? "" : ", ") + python_repr(choice);
  throw_rule(name, rule, python_repr(value));
}

void require_at_least(std::string_view name, const std::optional<int64_t>& value, int64_t least) {
  require_rule(value.value_or(least) >= least, name, "at least " + std::to_string(least), value);
}

void reject_unbuilt(const ServerArgs& args) {
  for (const ServerArgsField& field : server_args_fields()) {
    if (field.status != FieldStatus::kNotBuilt) continue;
    const std::string value = field.get(args);
    if (value == field.default_text) continue;
    throw Error(ErrorKind::kUnsupported, std::string(field.name) + "=" + value +
                                             " is not built yet: this version takes only the default, " +
                                             std::string(field.default_text) + ".");
  }
  if (args.device) check_device_name(*args.device);
  const bool is_half = args.dtype == "half" || args.dtype == "float16";
  if (is_half && args.device.value_or(default_device()) == "cpu") {
    throw Error(ErrorKind::kUnsupported, "dtype=" + python_repr(args.dtype) +
                                             " is not built for device='cpu': use 'auto', 'bfloat16' or 'float32'.");
  }
}

void check_scheduling(const ServerArgs& args) {
  require_rule(args.mem_fraction_static > 0 && args.mem_fraction_static < 1, "mem_fraction_static", "in (0, 1)",
               args.mem_fraction_static);
  require_at_least("context_length", args.context_length, 1);
  require_rule(args.max_running_requests.value_or(1) >= 1 && args.max_running_requests.value_or(1) <= 65536,
               "max_running_requests", "in [1, 65536]", args.max_running_requests);
  require_at_least("max_total_tokens", args.max_total_tokens, 1);
  require_at_least("max_prefill_tokens", args.max_prefill_tokens, 1);
  require_one_of("schedule_policy", args.schedule_policy, {"lpm", "fcfs", "dfs-weight", "lof", "random", "priority"});
  require_rule(std::isfinite(args.schedule_conservativeness) && args.schedule_conservativeness >= 0,
               "schedule_conservativeness", "finite and at least 0", args.schedule_conservativeness);
  const int64_t page_size = args.page_size.value_or(1);
  require_rule(page_size >= 1 && page_size <= 64 && std::has_single_bit(static_cast<uint64_t>(page_size)), "page_size",
               "a power of two from 1 to 64", args.page_size);
  require_rule(args.cuda_graph_max_bs.value_or(1) >= 1 && args.cuda_graph_max_bs.value_or(1) <= 4096,
               "cuda_graph_max_bs", "in [1, 4096]", args.cuda_graph_max_bs);
  require_at_least("max_queued_requests", args.max_queued_requests, 1);
  require_one_of("radix_eviction_policy", args.radix_eviction_policy, {"lru", "lfu", "fifo"});
  for (const auto& [name, value] :
       {std::pair("waiting_timeout", args.waiting_timeout), std::pair("running_timeout", args.running_timeout)}) {
    require_rule(std::isfinite(value.value_or(1)) && value.value_or(1) > 0, name, "None or a number above 0", value);
  }
}

}  // namespace

void ServerArgs::validate() const {
  if (model_path.empty()) {
    throw Error(ErrorKind::kValue,
                "model_path is required: a model folder, a .gguf file, or a hub id such as org/name.");
  }
  require_one_of("load_format", load_format, {"auto", "safetensors", "gguf", "dummy"});
  require_one_of("dtype", dtype, {"auto", "half", "float16", "bfloat16", "float32"});
  require_one_of("log_level", log_level, {"debug", "info", "warning", "error", "critical"});
  reject_unbuilt(*this);
  check_scheduling(*this);
  require_at_least("stream_interval", stream_interval, 1);
  require_at_least("decode_log_interval", decode_log_interval, 1);
  require_at_least("random_seed", random_seed, 0);
  require_rule(std::isfinite(watchdog_timeout) && watchdog_timeout >= 0, "watchdog_timeout", "finite and at least 0",
               watchdog_timeout);
  require_rule(num_threads.value_or(1) >= 1 && num_threads.value_or(1) <= 1024, "num_threads", "in [1, 1024]",
               num_threads);
  require_rule(port >= 0 && port <= 65535, "port", "in [0, 65535]", port);
}

}  // namespace tokenmill
