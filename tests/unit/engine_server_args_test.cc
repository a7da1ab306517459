// Walks the table of options: statuses, defaults, text in and out, rules and messages.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "engine/resolve_args.h"
#include "ops/backend_registry.h"
#include "tokenmill/error.h"
#include "tokenmill/server_args.h"
#include "util/expect_error.h"

namespace tokenmill {
namespace {

ServerArgs valid_args() {
  ServerArgs args;
  args.model_path = "model";
  return args;
}

// A value of the field's type that is not its default and parses.
std::string other_value(const ServerArgsField& field) {
  if (field.type.substr(0, 4) == "bool") return field.default_text == "True" ? "False" : "True";
  if (field.type.substr(0, 3) == "int") return field.default_text == "2" ? "3" : "2";
  if (field.type.substr(0, 5) == "float") return field.default_text == "0.5" ? "0.25" : "0.5";
  return "other";
}

TEST(ServerArgsTable, EveryFieldHasAPlaceAndAHelp) {
  std::set<std::string_view> names;
  for (const ServerArgsField& field : server_args_fields()) {
    EXPECT_TRUE(names.insert(field.name).second) << field.name;
    EXPECT_FALSE(field.help.empty()) << field.name;
    EXPECT_FALSE(field.type.empty()) << field.name;
    EXPECT_EQ(find_server_args_field(field.name), &field);
    EXPECT_EQ(field.get(ServerArgs{}), field.default_text) << field.name;
    EXPECT_TRUE(nlohmann::json::accept(field.get_json(ServerArgs{}))) << field.name;
  }
}

// Every option that is promised, in the order of the promise, with its default as Python writes it.
constexpr std::pair<std::string_view, std::string_view> kPromised[] = {{"model_path", "''"},
                                                                       {"tokenizer_path", "None"},
                                                                       {"tokenizer_mode", "'auto'"},
                                                                       {"skip_tokenizer_init", "False"},
                                                                       {"load_format", "'auto'"},
                                                                       {"trust_remote_code", "True"},
                                                                       {"dtype", "'auto'"},
                                                                       {"kv_cache_dtype", "'auto'"},
                                                                       {"quantization", "None"},
                                                                       {"context_length", "None"},
                                                                       {"device", "None"},
                                                                       {"served_model_name", "None"},
                                                                       {"chat_template", "None"},
                                                                       {"is_embedding", "False"},
                                                                       {"host", "'127.0.0.1'"},
                                                                       {"port", "30000"},
                                                                       {"api_key", "None"},
                                                                       {"log_level_http", "None"},
                                                                       {"file_storage_pth", "'sglang_storage'"},
                                                                       {"mem_fraction_static", "0.88"},
                                                                       {"max_running_requests", "None"},
                                                                       {"max_total_tokens", "None"},
                                                                       {"chunked_prefill_size", "None"},
                                                                       {"max_prefill_tokens", "16384"},
                                                                       {"schedule_policy", "'lpm'"},
                                                                       {"schedule_conservativeness", "1.0"},
                                                                       {"tp_size", "1"},
                                                                       {"dp_size", "1"},
                                                                       {"load_balance_method", "'round_robin'"},
                                                                       {"stream_interval", "1"},
                                                                       {"random_seed", "None"},
                                                                       {"constrained_json_whitespace_pattern", "None"},
                                                                       {"decode_log_interval", "40"},
                                                                       {"log_level", "'info'"},
                                                                       {"log_requests", "False"},
                                                                       {"show_time_cost", "False"},
                                                                       {"enable_cache_report", "False"},
                                                                       {"watchdog_timeout", "600.0"},
                                                                       {"dist_init_addr", "None"},
                                                                       {"nnodes", "1"},
                                                                       {"node_rank", "0"},
                                                                       {"json_model_override_args", "'{}'"},
                                                                       {"lora_paths", "None"},
                                                                       {"max_loras_per_batch", "8"},
                                                                       {"disable_radix_cache", "False"},
                                                                       {"disable_cuda_graph", "False"},
                                                                       {"enable_mixed_chunk", "True"},
                                                                       {"disable_overlap_schedule", "False"},
                                                                       {"cuda_graph_max_bs", "None"},
                                                                       {"page_size", "None"},
                                                                       {"enable_deterministic_inference", "None"},
                                                                       {"incremental_streaming_output", "True"},
                                                                       {"num_threads", "None"},
                                                                       {"revision", "None"},
                                                                       {"download_dir", "None"},
                                                                       {"max_queued_requests", "None"},
                                                                       {"radix_eviction_policy", "'lru'"},
                                                                       {"enable_metrics", "False"},
                                                                       {"allow_auto_truncate", "False"}};

TEST(ServerArgsTable, HoldsWhatIsPromised) {
  for (const auto& [name, default_text] : kPromised) {
    const ServerArgsField* field = find_server_args_field(name);
    ASSERT_NE(field, nullptr) << name;
    EXPECT_EQ(field->default_text, default_text) << name;
  }
}

// Takes any type: an aggregate has as many members as it accepts initialisers.
struct Anything {
  template <class T>
  operator T() const;
};
template <size_t... I>
constexpr bool accepts(std::index_sequence<I...>) {
  return requires { ServerArgs{(static_cast<void>(I), Anything{})...}; };
}
template <size_t Count = std::size(kPromised)>
constexpr size_t count_members() {
  if constexpr (accepts(std::make_index_sequence<Count + 1>())) {
    return count_members<Count + 1>();
  } else {
    return Count;
  }
}

// A member without a row would be missing from the CLI, the help and the checks.
TEST(ServerArgsTable, EveryMemberHasARow) { EXPECT_EQ(server_args_fields().size(), count_members()); }

TEST(ServerArgsTable, SetAndGetAgree) {
  for (const ServerArgsField& field : server_args_fields()) {
    ServerArgs args;
    const std::string text = other_value(field);
    field.set(args, text);
    EXPECT_NE(field.get(args), field.default_text) << field.name;
    // Nothing else has moved.
    for (const ServerArgsField& other : server_args_fields()) {
      if (&other == &field) continue;
      EXPECT_EQ(other.get(args), other.default_text) << field.name << " moved " << other.name;
    }
    if (field.type.find("None") != field.type.npos) {
      field.set(args, "None");
      EXPECT_EQ(field.get(args), "None") << field.name;
    }
  }
}

TEST(ServerArgsTable, TypedValuesAgreeWithText) {
  for (const ServerArgsField& field : server_args_fields()) {
    ServerArgs from_text, from_value;
    field.set(from_text, other_value(field));
    field.set_value(from_value, field.get_value(from_text));
    EXPECT_EQ(field.get(from_value), field.get(from_text)) << field.name;
  }
  ServerArgs args;
  EXPECT_LOAD_ERROR(find_server_args_field("port")->set_value(args, std::string("80")), ErrorKind::kType,
                    "port must be int, got '80'.");
  // Text that reads like None is text.
  find_server_args_field("chat_template")->set_value(args, std::string("None"));
  EXPECT_EQ(args.chat_template, "None");
}

TEST(ServerArgsTable, UnbuiltFieldsRaiseForAnyOtherValue) {
  int unbuilt = 0;
  for (const ServerArgsField& field : server_args_fields()) {
    ServerArgs args = valid_args();
    field.set(args, other_value(field));
    if (field.status == FieldStatus::kNotBuilt) {
      ++unbuilt;
      EXPECT_LOAD_ERROR(args.validate(), ErrorKind::kUnsupported, std::string(field.name), "is not built yet");
    } else if (field.status == FieldStatus::kServerOnly) {
      EXPECT_NO_THROW(args.validate()) << field.name;
    }
  }
  EXPECT_GE(unbuilt, 10);
}

TEST(ServerArgsTable, BadTextNamesTheField) {
  ServerArgs args;
  EXPECT_LOAD_ERROR(find_server_args_field("port")->set(args, "80x"), ErrorKind::kValue,
                    "port must be an integer, got '80x'.");
  EXPECT_LOAD_ERROR(find_server_args_field("mem_fraction_static")->set(args, "much"), ErrorKind::kValue,
                    "mem_fraction_static must be a number, got 'much'.");
  EXPECT_LOAD_ERROR(find_server_args_field("log_requests")->set(args, "yes"), ErrorKind::kValue,
                    "log_requests must be True or False, got 'yes'.");
}

TEST(ServerArgsTable, UnknownNames) {
  EXPECT_EQ(nearest_server_args_field("mem_fraction"), "mem_fraction_static");
  EXPECT_EQ(nearest_server_args_field("modelpath"), "model_path");
  EXPECT_EQ(unknown_server_args_field_message("schedule_polic"),
            "ServerArgs has no field 'schedule_polic'. Did you mean 'schedule_policy'?");
  for (const char* name : {"attention_backend", "grammar_backend", "triton_attention_reduce_in_fp32"}) {
    EXPECT_NE(unknown_server_args_field_message(name).find("is not needed here and can be removed"), std::string::npos);
  }
}

TEST(ServerArgs, Rules) {
  const auto rejects = [](auto change, const char* message, ErrorKind kind = ErrorKind::kValue) {
    ServerArgs args = valid_args();
    change(args);
    EXPECT_LOAD_ERROR(args.validate(), kind, message);
  };
  EXPECT_NO_THROW(valid_args().validate());
  rejects([](ServerArgs& a) { a.model_path = ""; }, "model_path is required");
  rejects([](ServerArgs& a) { a.page_size = 48; }, "page_size must be a power of two from 1 to 64, got 48.");
  rejects([](ServerArgs& a) { a.page_size = 128; }, "page_size must be a power of two from 1 to 64, got 128.");
  rejects([](ServerArgs& a) { a.mem_fraction_static = 1.5; }, "mem_fraction_static must be in (0, 1), got 1.5.");
  rejects([](ServerArgs& a) { a.mem_fraction_static = std::nan(""); }, "mem_fraction_static must be in (0, 1)");
  rejects([](ServerArgs& a) { a.schedule_policy = "best"; }, "schedule_policy must be one of 'lpm', 'fcfs'");
  rejects([](ServerArgs& a) { a.num_threads = 0; }, "num_threads must be in [1, 1024], got 0.");
  rejects([](ServerArgs& a) { a.max_running_requests = 0; }, "max_running_requests must be in [1, 65536], got 0.");
  rejects([](ServerArgs& a) { a.dtype = "int8"; }, "dtype must be one of 'auto', 'half'");
  rejects([](ServerArgs& a) { a.log_level = "loud"; }, "log_level must be one of");
  rejects([](ServerArgs& a) { a.stream_interval = 0; }, "stream_interval must be at least 1, got 0.");
  for (const char* device : {"gpu", "cuda:", "cuda:x", "cuda:-1", "CUDA"}) {
    rejects([&](ServerArgs& a) { a.device = device; }, "device must be 'cpu', 'cuda' or 'cuda:N', got '");
  }
  if (!has_cuda()) {
    rejects([](ServerArgs& a) { a.device = "cuda:1"; }, "device='cuda:1' needs a build with CUDA",
            ErrorKind::kUnsupported);
  }
  rejects([](ServerArgs& a) { a.cuda_graph_max_bs = 0; }, "cuda_graph_max_bs must be in [1, 4096], got 0.");
  const auto on_cpu = [](ServerArgs& a) {
    a.dtype = "float16";
    a.device = "cpu";
  };
  rejects(on_cpu, "dtype='float16' is not built for device='cpu'", ErrorKind::kUnsupported);
  rejects([](ServerArgs& a) { a.tp_size = 2; }, "tp_size=2 is not built yet", ErrorKind::kUnsupported);
  rejects([](ServerArgs& a) { a.quantization = "fp8"; }, "quantization='fp8' is not built yet",
          ErrorKind::kUnsupported);
}

TEST(ServerArgs, ResolvedAndPrinted) {
  ServerArgs args = valid_args();
  args.api_key = "secret";
  args.device = "cpu";
  args = resolve_server_args(args);
  EXPECT_EQ(args.page_size, 32);
  EXPECT_EQ(args.chunked_prefill_size, 512);
  EXPECT_EQ(args.max_running_requests, 256);
  EXPECT_EQ(args.tokenizer_path, "model");
  EXPECT_EQ(args.device, "cpu");
  EXPECT_TRUE(args.random_seed.has_value());
  const std::string text = to_string(args);
  EXPECT_EQ(text.rfind("ServerArgs(model_path='model', tokenizer_path='model', tokenizer_mode='auto'", 0), 0u) << text;
  EXPECT_EQ(text.find("secret"), std::string::npos);
}

}  // namespace
}  // namespace tokenmill
