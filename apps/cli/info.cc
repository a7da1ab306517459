// tokenmill info: what a model on disk is, from its headers.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "cli/command.h"
#include "cli/jsonl.h"
#include "cli/terminal.h"
#include "verify/model_info.h"

namespace tokenmill::cli {
namespace {

using nlohmann::ordered_json;

ordered_json to_json(const ModelInfo& model) {
  ordered_json formats = ordered_json::array();
  for (const FormatInfo& format : model.formats) {
    formats.push_back({{"format", format.name},
                       {"tensors", format.tensors},
                       {"parameters", format.parameters},
                       {"bytes", format.bytes}});
  }
  return {{"path", model.path},
          {"file_format", model.file_format},
          {"files", model.files},
          {"architecture", model.architecture},
          {"parameters", model.parameters},
          {"matrix_parameters", model.matrix_parameters},
          {"weight_bytes", model.weight_bytes},
          {"formats", formats},
          {"num_layers", model.num_layers},
          {"hidden_size", model.hidden_size},
          {"intermediate_size", model.intermediate_size},
          {"num_heads", model.num_heads},
          {"num_kv_heads", model.num_kv_heads},
          {"head_dim", model.head_dim},
          {"vocab_size", model.vocab_size},
          {"context_length", model.context_length},
          {"window_layers", model.window_layers},
          {"window", model.window},
          {"tied_embedding", model.tied_embedding},
          {"quantized", model.quantized},
          {"rope_theta", model.rope_theta},
          {"rope_scaling", model.rope_scaling},
          {"kv_bytes_per_token", model.kv_bytes_per_token},
          {"kv_bytes_per_token_float32", model.kv_bytes_per_token_f32},
          {"eos_token_ids", model.eos_token_ids},
          {"bos_token_id", model.bos_token_id ? ordered_json(*model.bos_token_id) : ordered_json(nullptr)},
          {"tokenizer", model.tokenizer}};
}

void print_row(const char* name, const std::string& value) { std::printf("%-14s %s\n", name, value.c_str()); }

void print_text(const ModelInfo& model) {
  const auto number = [](int64_t value) { return std::to_string(value); };
  print_row("path", model.path);
  print_row("architecture", model.architecture + " (" + model.file_format + ", " + number(model.files) +
                                (model.files == 1 ? " file)" : " files)"));
  print_row("parameters", format_count(model.parameters));
  print_row("weights", format_bytes(static_cast<double>(model.weight_bytes)));
  for (const FormatInfo& format : model.formats) {
    print_row(("  " + format.name).c_str(), format_bytes(static_cast<double>(format.bytes)) + " in " +
                                                number(format.tensors) +
                                                (format.tensors == 1 ? " tensor" : " tensors"));
  }
  print_row("layers", number(model.num_layers) + " of hidden size " + number(model.hidden_size) +
                          ", intermediate size " + number(model.intermediate_size));
  print_row("attention", number(model.num_heads) + " heads, " + number(model.num_kv_heads) + " KV heads of size " +
                             number(model.head_dim));
  if (model.window_layers > 0) {
    print_row("window", number(model.window_layers) + " layers see " + format_count(model.window) + " tokens");
  }
  print_row("rope",
            "theta " + std::to_string(static_cast<int64_t>(model.rope_theta)) + ", scaling " + model.rope_scaling);
  print_row("vocabulary",
            format_count(model.vocab_size) + (model.tied_embedding ? " (embedding tied to the head)" : ""));
  print_row("context", format_count(model.context_length) + " tokens");
  print_row("KV cache", format_count(model.kv_bytes_per_token) + " bytes a token (" +
                            format_count(model.kv_bytes_per_token_f32) + " with dtype float32)");
  print_row("tokenizer", model.tokenizer);
}

}  // namespace

Command add_info(CLI::App& parent) {
  struct Options {
    ServerArgs server_args;
    bool as_json = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* app = parent.add_subcommand("info", "Show a model's architecture, sizes, formats, context and KV bytes");
  app->add_option("model", options->server_args.model_path,
                  "A model folder, a .gguf file, or a model on the hub: org/name")
      ->required();
  app->add_flag("--json", options->as_json, "JSON instead of text");
  app->add_option("--revision", options->server_args.revision, "Branch, tag or commit of a model on the hub [main]");
  app->add_option("--download-dir", options->server_args.download_dir,
                  "Hugging Face cache folder [HF_HUB_CACHE, HF_HOME or the default]");
  return {app, [options] {
            const ModelInfo model = read_model_info(options->server_args);
            if (options->as_json) {
              std::printf("%s\n", to_json(model).dump(2, ' ', false, ordered_json::error_handler_t::replace).c_str());
            } else {
              print_text(model);
            }
            return static_cast<int>(kExitOk);
          }};
}

}  // namespace tokenmill::cli
