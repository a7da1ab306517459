// The one table of options: validation, CLI flags, help, JSON and the bindings are made from it.
#include "tokenmill/server_args.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <deque>
#include <nlohmann/json.hpp>

#include "engine/option_assign.h"
#include "engine/text_repr.h"
#include "tokenmill/error.h"

namespace tokenmill {
namespace {

void parse(std::string_view, std::string_view text, std::string& value) { value = text; }

void parse(std::string_view name, std::string_view text, bool& value) {
  if (text == "True" || text == "true" || text == "1") {
    value = true;
  } else if (text == "False" || text == "false" || text == "0") {
    value = false;
  } else {
    throw_rule(name, "True or False", python_repr(text));
  }
}

template <class Number>
void parse_number(std::string_view name, std::string_view text, std::string_view rule, Number& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) throw_rule(name, rule, python_repr(text));
}
void parse(std::string_view name, std::string_view text, int64_t& value) {
  parse_number(name, text, "an integer", value);
}
void parse(std::string_view name, std::string_view text, double& value) { parse_number(name, text, "a number", value); }

// Comma-separated.
void parse(std::string_view, std::string_view text, std::vector<std::string>& values) {
  values.clear();
  while (!text.empty() && text != "None") {
    const size_t comma = std::min(text.find(','), text.size());
    values.emplace_back(text.substr(0, comma));
    text.remove_prefix(std::min(comma + 1, text.size()));
  }
}

template <class T>
void parse(std::string_view name, std::string_view text, std::optional<T>& value) {
  if (text == "None" || text == "none") {
    value.reset();
    return;
  }
  T parsed{};
  parse(name, text, parsed);
  value = std::move(parsed);
}

template <class T>
std::string json_text(const T& value) {
  return nlohmann::json(value).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}
template <class T>
std::string json_text(const std::optional<T>& value) {
  return value ? json_text(*value) : "null";
}

template <class T>
struct MemberType;
template <class T>
struct MemberType<T ServerArgs::*> {
  using Type = T;
};

// A field's name as text, so that a row is one line and its functions know the name.
template <size_t N>
struct Name {
  char text[N];
  constexpr Name(const char (&from)[N]) { std::copy_n(from, N, text); }
};

template <auto Member, Name FieldName>
ServerArgsField row(FieldStatus status, std::string_view help) {
  using T = typename MemberType<decltype(Member)>::Type;
  ServerArgsField field;
  field.name = FieldName.text;
  field.status = status;
  field.type = kOptionTypeName<T>;
  field.help = help;
  field.set = [](ServerArgs& args, std::string_view text) { parse(FieldName.text, text, args.*Member); };
  field.get = [](const ServerArgs& args) { return python_repr(args.*Member); };
  field.get_json = [](const ServerArgs& args) { return json_text(args.*Member); };
  field.set_value = [](ServerArgs& args, const OptionValue& value) {
    assign_option(FieldName.text, value, args.*Member);
  };
  field.get_value = [](const ServerArgs& args) { return option_of(args.*Member); };
  return field;
}

#define FIELD(member) row<&ServerArgs::member, #member>

std::vector<ServerArgsField> make_table() {
  constexpr auto kHonoured = FieldStatus::kHonoured;
  constexpr auto kServerOnly = FieldStatus::kServerOnly;
  constexpr auto kNotBuilt = FieldStatus::kNotBuilt;
  return {
      FIELD(model_path)(kHonoured,
                        "a model folder, a .gguf file, or a model on the Hugging Face hub: org/name, org/name:Q4_K_M"),
      FIELD(tokenizer_path)(kHonoured, "a folder with tokenizer.json, or a .gguf file; None: model_path"),
      FIELD(tokenizer_mode)(kNotBuilt, "'auto' is the only mode: the fast tokenizer"),
      FIELD(skip_tokenizer_init)(kHonoured, "load no tokenizer: token ids in, token ids out"),
      FIELD(load_format)(kHonoured, "auto, safetensors, gguf, or dummy (seeded random weights from the config alone)"),
      FIELD(trust_remote_code)(kHonoured, "accepted, and without effect: no remote code is ever run"),
      FIELD(dtype)(kHonoured,
                   "auto (bfloat16; float32 for a float32 checkpoint; float16 for a float16 one on CUDA; quantised "
                   "weights as they are), bfloat16, float32, float16 or half (CUDA only)"),
      FIELD(kv_cache_dtype)(kNotBuilt, "'auto': float32 or float16 with that dtype, else bfloat16"),
      FIELD(quantization)(kNotBuilt, "quantise at load; a checkpoint that is quantised needs no option"),
      FIELD(context_length)(kHonoured, "tokens of prompt and output together; None: what the model declares"),
      FIELD(device)(kHonoured, "cpu, cuda or cuda:N; None: cuda where this build has it and there is a card, else cpu"),
      FIELD(served_model_name)(kServerOnly, "the model's name in the server's API; None: model_path"),
      FIELD(chat_template)(kHonoured, "a Jinja file, or the template itself; None: the model's own"),
      FIELD(is_embedding)(kNotBuilt, "serve an embedding model"),
      FIELD(host)(kServerOnly, "address the server listens on"),
      FIELD(port)(kServerOnly, "port the server listens on"),
      FIELD(api_key)(kServerOnly, "key the server's clients must send"),
      FIELD(log_level_http)(kServerOnly, "log level of the HTTP server; None: log_level"),
      FIELD(file_storage_pth)(kServerOnly, "folder for files uploaded to the server"),
      FIELD(mem_fraction_static)(kHonoured,
                                 "share of the available memory that weights and KV pool take together (CUDA), or may "
                                 "take (CPU: the default KV pool stays below a quarter of what is available)"),
      FIELD(max_running_requests)(kHonoured, "requests that run at once; None: 256 on the CPU, by pool size on CUDA"),
      FIELD(max_total_tokens)(kHonoured, "tokens the KV pool holds; None: by memory"),
      FIELD(chunked_prefill_size)(kHonoured,
                                  "prompt tokens computed a step; 0 or less: off; None: 512 on the CPU, 8192 on CUDA"),
      FIELD(max_prefill_tokens)(kHonoured, "prompt tokens admitted a step where prompts are not chunked"),
      FIELD(schedule_policy)(kHonoured, "lpm, fcfs, dfs-weight, lof, random, priority"),
      FIELD(schedule_conservativeness)(kHonoured, "above 1 admits fewer requests and retracts less often"),
      FIELD(tp_size)(kNotBuilt, "tensor parallelism"),
      FIELD(dp_size)(kNotBuilt, "data parallelism"),
      FIELD(load_balance_method)(kNotBuilt, "how dp_size replicas share requests"),
      FIELD(stream_interval)(kHonoured, "output tokens a streamed chunk; the first token always comes at once"),
      FIELD(random_seed)(kHonoured, "seeds requests that have none, and dummy weights; None: drawn at start"),
      FIELD(constrained_json_whitespace_pattern)(kNotBuilt, "white space in JSON output (structured output)"),
      FIELD(decode_log_interval)(kHonoured, "decode steps between two 'Decode batch' log lines"),
      FIELD(log_level)(kHonoured, "debug, info, warning, error, critical"),
      FIELD(log_requests)(kHonoured, "log every request when it comes and when it ends"),
      FIELD(show_time_cost)(kHonoured, "log the mean time of each part of a step every decode_log_interval steps"),
      FIELD(enable_cache_report)(kServerOnly, "report cached tokens in the server's usage field"),
      FIELD(watchdog_timeout)(kHonoured, "log an error when one step takes longer, in seconds; 0: off"),
      FIELD(dist_init_addr)(kNotBuilt, "rendezvous address of several machines"),
      FIELD(nnodes)(kNotBuilt, "number of machines"),
      FIELD(node_rank)(kNotBuilt, "this machine's number"),
      FIELD(json_model_override_args)(kHonoured, "a JSON object merged over the model's config.json"),
      FIELD(lora_paths)(kNotBuilt, "LoRA adapters"),
      FIELD(max_loras_per_batch)(kNotBuilt, "LoRA adapters in one batch"),
      FIELD(disable_radix_cache)(kHonoured, "share no prefixes between requests"),
      FIELD(disable_cuda_graph)(kHonoured, "use no CUDA graph (the CPU never does)"),
      FIELD(enable_mixed_chunk)(kHonoured, "let decodes ride along with prefill chunks"),
      FIELD(disable_overlap_schedule)(kHonoured, "commit a step before the next is launched (the CPU always does)"),
      FIELD(cuda_graph_max_bs)(kHonoured, "largest decode batch that runs as a CUDA graph; None: 256"),
      FIELD(page_size)(kHonoured, "tokens a KV block: a power of two from 1 to 64; None: 32 on the CPU, 16 on CUDA"),
      FIELD(enable_deterministic_inference)(
          kHonoured,
          "equal bits whatever else is in the batch; None: on on the CPU (where it always is), off "
          "on CUDA"),
      FIELD(incremental_streaming_output)(kHonoured, "streamed chunks are deltas; False: cumulative"),
      FIELD(num_threads)(kHonoured, "CPU threads, the engine's own among them; None: all this process may use"),
      FIELD(revision)(kHonoured, "branch, tag or commit of a model on the hub; None: main"),
      FIELD(download_dir)(kHonoured, "Hugging Face cache folder; None: HF_HUB_CACHE, HF_HOME or the default"),
      FIELD(max_queued_requests)(kHonoured, "requests that may wait; None: 1048576"),
      FIELD(radix_eviction_policy)(kHonoured, "which cached prefix goes first when memory runs out: lru, lfu, fifo"),
      FIELD(enable_metrics)(kServerOnly, "serve /metrics"),
      FIELD(allow_auto_truncate)(kHonoured, "cut the end off an over-long prompt instead of raising"),
      FIELD(waiting_timeout)(kHonoured,
                             "seconds a request may wait before it starts, else it is aborted; None: no limit"),
      FIELD(trace_path)(kHonoured, "write a trace of steps and requests for Perfetto or chrome://tracing to this file"),
      FIELD(running_timeout)(kHonoured, "seconds a request may take after it has started; None: no limit"),
  };
}

#undef FIELD

struct Table {
  std::vector<ServerArgsField> fields = make_table();
  std::deque<std::string> defaults;  // owns the default texts
  std::vector<std::string_view> names;

  Table() {
    const ServerArgs args;
    for (ServerArgsField& field : fields) {
      field.default_text = defaults.emplace_back(field.get(args));
      names.push_back(field.name);
    }
  }
};

const Table& table() {
  static const Table table;
  return table;
}

// SGLang's options that have no meaning here, sorted.
constexpr std::array<std::string_view, 58> kUnneededFields = {
    "attention_backend",
    "bucket_e2e_request_latency",
    "bucket_inter_token_latency",
    "bucket_time_to_first_token",
    "cuda_graph_bs",
    "custom_sigquit_handler",
    "decode_attention_backend",
    "delete_ckpt_after_loading",
    "disable_custom_all_reduce",
    "disable_cuda_graph_padding",
    "disable_disk_cache",
    "disable_fast_image_processor",
    "disable_flashinfer",
    "disable_flashinfer_sampling",
    "disable_jump_forward",
    "disable_mla",
    "disable_nan_detection",
    "disable_outlines_disk_cache",
    "disable_regex_jump_forward",
    "disable_shared_experts_fusion",
    "dist_timeout",
    "enable_cudagraph_gc",
    "enable_custom_logit_processor",
    "enable_dp_attention",
    "enable_dp_lm_head",
    "enable_ep_moe",
    "enable_flashinfer_mla",
    "enable_memory_saver",
    "enable_mscclpp",
    "enable_nan_detection",
    "enable_nccl_nvls",
    "enable_overlap_schedule",
    "enable_p2p_check",
    "enable_priority_scheduling",
    "enable_profile_cuda_graph",
    "enable_tokenizer_batch_encode",
    "enable_torch_compile",
    "flashinfer_mla_disable_ragged",
    "gc_warning_threshold_secs",
    "grammar_backend",
    "mm_attention_backend",
    "moe_runner_backend",
    "nccl_init_addr",
    "nccl_port",
    "num_continuous_decode_steps",
    "prefill_attention_backend",
    "prefill_max_requests",
    "sampling_backend",
    "skip_server_warmup",
    "sleep_on_idle",
    "tokenizer_worker_num",
    "torch_compile_max_bs",
    "torchao_config",
    "triton_attention_num_kv_splits",
    "triton_attention_reduce_in_fp32",
    "triton_backend",
    "use_mla_backend",
    "warmups",
};

}  // namespace

std::span<const ServerArgsField> server_args_fields() { return table().fields; }

const ServerArgsField* find_server_args_field(std::string_view name) {
  for (const ServerArgsField& field : table().fields) {
    if (field.name == name) return &field;
  }
  return nullptr;
}

std::string_view nearest_server_args_field(std::string_view name) { return nearest_name(name, table().names); }

bool is_unneeded_server_args_field(std::string_view name) {
  return std::find(kUnneededFields.begin(), kUnneededFields.end(), name) != kUnneededFields.end();
}

std::string unknown_server_args_field_message(std::string_view name) {
  const std::string quoted = python_repr(name);
  if (is_unneeded_server_args_field(name)) {
    return quoted +
           " is not needed here and can be removed: it chooses among parts of SGLang that tokenmill does not "
           "have.";
  }
  return "ServerArgs has no field " + quoted + ". Did you mean " + python_repr(nearest_server_args_field(name)) + "?";
}

std::string to_string(const ServerArgs& args) {
  std::string text = "ServerArgs(";
  for (const ServerArgsField& field : table().fields) {
    if (text.back() != '(') text += ", ";
    // A key does not belong in a log.
    const bool secret = field.name == "api_key" && args.api_key;
    text += std::string(field.name) + "=" + (secret ? std::string("'***'") : field.get(args));
  }
  return text + ")";
}

}  // namespace tokenmill
