// The engine's options: SGLang's field names and defaults, plus ours. One table describes them all.
//
// server_args_fields() is that table: validation, CLI flags, help, JSON and (later) Python and the server are made from
// it. Adding an option is one member here and one row there (src/engine/server_args.cc).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tokenmill/export.h"
#include "tokenmill/option_value.h"

namespace tokenmill {

struct TOKENMILL_API ServerArgs {
  std::string model_path = {};                     // a folder, a .gguf file, or a hub id: org/name, org/name:Q4_K_M
  std::optional<std::string> tokenizer_path = {};  // nullopt: model_path
  std::string tokenizer_mode = "auto";
  bool skip_tokenizer_init = false;
  std::string load_format = "auto";  // auto, safetensors, gguf, dummy
  bool trust_remote_code = true;     // accepted without effect: no remote code is ever run
  std::string dtype = "auto";        // auto, half, float16, bfloat16, float32
  std::string kv_cache_dtype = "auto";
  std::optional<std::string> quantization = {};
  std::optional<int64_t> context_length = {};
  std::optional<std::string> device = {};
  std::optional<std::string> served_model_name = {};
  std::optional<std::string> chat_template = {};
  bool is_embedding = false;
  std::string host = "127.0.0.1";
  int64_t port = 30000;
  std::optional<std::string> api_key = {};
  std::optional<std::string> log_level_http = {};
  std::string file_storage_pth = "sglang_storage";
  double mem_fraction_static = 0.88;
  std::optional<int64_t> max_running_requests = {};
  std::optional<int64_t> max_total_tokens = {};
  std::optional<int64_t> chunked_prefill_size = {};
  int64_t max_prefill_tokens = 16384;
  std::string schedule_policy = "lpm";
  double schedule_conservativeness = 1.0;
  int64_t tp_size = 1;
  int64_t dp_size = 1;
  std::string load_balance_method = "round_robin";
  int64_t stream_interval = 1;
  std::optional<int64_t> random_seed = {};
  std::optional<std::string> constrained_json_whitespace_pattern = {};
  int64_t decode_log_interval = 40;
  std::string log_level = "info";
  bool log_requests = false;
  bool show_time_cost = false;
  bool enable_cache_report = false;
  double watchdog_timeout = 600;
  std::optional<std::string> dist_init_addr = {};
  int64_t nnodes = 1;
  int64_t node_rank = 0;
  std::string json_model_override_args = "{}";
  std::vector<std::string> lora_paths = {};
  int64_t max_loras_per_batch = 8;
  bool disable_radix_cache = false;
  bool disable_cuda_graph = false;
  bool enable_mixed_chunk = true;
  bool disable_overlap_schedule = false;
  std::optional<int64_t> cuda_graph_max_bs = {};
  // Not in the seed.
  std::optional<int64_t> page_size = {};  // tokens a physical KV block, a power of two in [1, 64]
  std::optional<bool> enable_deterministic_inference = {};
  bool incremental_streaming_output = true;
  std::optional<int64_t> num_threads = {};
  std::optional<std::string> revision = {};
  std::optional<std::string> download_dir = {};
  std::optional<int64_t> max_queued_requests = {};
  std::string radix_eviction_policy = "lru";
  bool enable_metrics = false;
  bool allow_auto_truncate = false;
  std::optional<double> waiting_timeout = {};  // seconds until the first admission; nullopt: none
  std::optional<double> running_timeout = {};  // seconds since then; nullopt: none
  std::optional<std::string> trace_path = {};  // Chrome/Perfetto trace of steps and requests

  // Throws Error: kValue with the rule and the value, kUnsupported for what this build cannot honour.
  void validate() const;
};

enum class FieldStatus {
  kHonoured,
  kServerOnly,  // used by the server app; Engine accepts it and it has no effect there
  kNotBuilt,    // any value but the default raises and says so
};

struct ServerArgsField {
  std::string_view name = {};  // "mem_fraction_static"; the CLI flag is --mem-fraction-static
  FieldStatus status;
  std::string_view type = {};          // "str", "int", "float", "bool", "list[str]"; "| None" where it may be unset
  std::string_view default_text = {};  // as Python writes it: None, True, 0.88, 'lpm'
  std::string_view help = {};
  // Text in and out, as on a command line; set throws Error(kValue) naming the field. get gives Python's repr,
  // get_json a JSON value.
  void (*set)(ServerArgs&, std::string_view text);
  std::string (*get)(const ServerArgs&);
  std::string (*get_json)(const ServerArgs&);
  // The same with a typed value; throws Error(kType) "port must be int, got '80'."
  void (*set_value)(ServerArgs&, const OptionValue&);
  OptionValue (*get_value)(const ServerArgs&);
};

TOKENMILL_API std::span<const ServerArgsField> server_args_fields();
// nullptr where there is none of that name.
TOKENMILL_API const ServerArgsField* find_server_args_field(std::string_view name);
// The nearest known field name, for error messages.
TOKENMILL_API std::string_view nearest_server_args_field(std::string_view name);
// Whether it is an SGLang option that has no meaning here.
TOKENMILL_API bool is_unneeded_server_args_field(std::string_view name);
// What to say of a name that is no field: an SGLang option that is not needed here, or the nearest known name.
TOKENMILL_API std::string unknown_server_args_field_message(std::string_view name);
// "ServerArgs(model_path='…', …)"; an api_key is not spelt out.
TOKENMILL_API std::string to_string(const ServerArgs& args);

}  // namespace tokenmill
