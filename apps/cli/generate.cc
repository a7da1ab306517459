// tokenmill generate: one prompt as streamed text, or a file of requests (resumed where it was cut off) with a bar.
#include <CLI/CLI.hpp>
#include <chrono>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/jsonl.h"
#include "cli/sampling_flags.h"
#include "cli/server_args_flags.h"
#include "cli/terminal.h"
#include "tokenmill/engine.h"

namespace tokenmill::cli {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

struct GenerateOptions {
  ServerArgs server_args;
  BatchOptions batch;  // sampling_params and logprob settings of a single prompt, too
  std::string prompt, system, input, output, format;
  bool has_prompt = false, chat = false, no_progress = false;
};

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void write(std::ostream& out, std::string_view text, const std::string& name) {
  out << text << std::flush;
  if (!out) throw Error(ErrorKind::kRuntime, name + ": cannot be written");
}

std::string chat_messages(const GenerateOptions& options) {
  json messages = json::array();
  if (!options.system.empty()) messages.push_back({{"role", "system"}, {"content", options.system}});
  messages.push_back({{"role", "user"}, {"content", options.prompt}});
  return messages.dump(-1, ' ', false, json::error_handler_t::replace);
}

void print_summary(int64_t tokens, int64_t prompt_tokens, int64_t cached, double seconds) {
  if (!is_terminal(stderr)) return;
  char line[160];
  std::snprintf(line, sizeof line, "%s prompt tokens (%s cached), %s generated in %.2f s, %.1f tok/s",
                format_count(prompt_tokens).c_str(), format_count(cached).c_str(), format_count(tokens).c_str(),
                seconds, seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0);
  std::fprintf(stderr, "%s\n", style(stderr, line, Style::kDim).c_str());
}

// Text of one sample, written as it comes.
int stream_one(Engine& engine, Request request) {
  request.stream = true;
  const auto start = Clock::now();
  Stream stream = engine.generate_stream(std::move(request));
  MetaInfo last;
  while (std::optional<Output> chunk = stream.next()) {
    std::cout << chunk->text << std::flush;
    if (!std::cout) break;
    if (interrupted()) stream.abort();  // Ctrl-C may have come before there was anything to abort
    last = std::move(chunk->meta_info);
  }
  std::cout << std::endl;
  if (!std::cout) throw Error(ErrorKind::kRuntime, "standard output: cannot be written");
  print_summary(last.completion_tokens, last.prompt_tokens, last.cached_tokens, seconds_since(start));
  if (interrupted()) return kExitInterrupted;
  if (last.finish_reason && last.finish_reason->type == FinishReason::Type::kAbort) {
    throw Error(ErrorKind::kRuntime, last.finish_reason->message);
  }
  return kExitOk;
}

// All samples of one prompt, when they have finished.
int generate_one(Engine& engine, Request request, const GenerateOptions& options, bool as_json) {
  const bool to_stdout = options.output.empty() || options.output == "-";
  std::ofstream file;
  if (!to_stdout) {
    file.open(options.output, std::ios::binary | std::ios::trunc);
    if (!file) throw Error(ErrorKind::kValue, options.output + ": cannot be opened for writing");
  }
  std::ostream& out = to_stdout ? std::cout : file;
  const auto start = Clock::now();
  const std::vector<Output> outputs = engine.generate(std::move(request));
  if (interrupted()) return kExitInterrupted;
  int64_t tokens = 0;
  for (const Output& output : outputs) {
    std::string text = output.text;
    if (as_json) {
      ordered_json line = {{"index", 0}};
      if (outputs.size() > 1) line["sample"] = output.sample;
      line.update(ordered_json::parse(to_json(output)));
      text = dump_line(line);
    }
    write(out, text + "\n", to_stdout ? "standard output" : options.output);
    tokens += output.meta_info.completion_tokens;
    const FinishReason& reason = *output.meta_info.finish_reason;
    if (reason.type == FinishReason::Type::kAbort) throw Error(ErrorKind::kRuntime, reason.message);
  }
  const MetaInfo& first = outputs.front().meta_info;
  print_summary(tokens, first.prompt_tokens, first.cached_tokens, seconds_since(start));
  return kExitOk;
}

int report_batch(const BatchReport& report, double seconds) {
  print_summary(report.completion_tokens, report.prompt_tokens, report.cached_tokens, seconds);
  if (report.resumed > 0) {
    std::fprintf(stderr, "%s of %s had their result already\n", format_count(report.resumed).c_str(),
                 format_count(report.total).c_str());
  }
  if (report.stopped) return kExitInterrupted;
  if (report.failed == 0) return kExitOk;
  const std::string where = report.error_path.empty() ? "" : "; see " + report.error_path;
  std::fprintf(stderr, "%lld of %lld failed%s\n", static_cast<long long>(report.failed),
               static_cast<long long>(report.total), where.c_str());
  return kExitFailure;
}

// A file of requests. Text, and JSON lines for standard output, are written here; a file's by the library.
int run_batch(Engine& engine, const GenerateOptions& options, bool as_json) {
  const bool to_stdout = options.output.empty() || options.output == "-";
  BatchOptions batch = options.batch;
  std::ofstream text_file;
  if (!as_json) batch.ordered = true;
  if (!as_json && !to_stdout) {
    text_file.open(options.output, std::ios::binary | std::ios::trunc);
    if (!text_file) throw Error(ErrorKind::kValue, options.output + ": cannot be opened for writing");
  }
  std::ostream& out = to_stdout ? std::cout : text_file;
  const std::string source = options.input == "-" ? "standard input" : options.input;
  const bool tell_errors = to_stdout || !as_json;
  batch.on_result = [&](const BatchItem& item) {
    if (!item.error.empty()) {
      if (tell_errors) {
        std::fprintf(stderr, "%s: line %lld: %s\n", source.c_str(), static_cast<long long>(item.line),
                     std::string(item.error).c_str());
      }
    } else if (!as_json) {
      for (const Output& output : *item.outputs) {
        write(out, output.text + "\n", to_stdout ? "standard output" : options.output);
      }
    } else if (to_stdout) {
      write(out, item.json, "standard output");
    }
  };
  // Results and a bar on one terminal would run into each other.
  const bool wants_bar = !options.no_progress && (!to_stdout || !is_terminal(stdout));
  std::unique_ptr<ProgressBar> bar;
  batch.on_progress = [&](const BatchProgress& progress) {
    if (progress.total > 0) {
      if (!bar) bar = std::make_unique<ProgressBar>(progress.total - progress.resumed, wants_bar);
      bar->update(progress.done + progress.failed, progress.completion_tokens);
    }
    return !interrupted();
  };
  const auto start = Clock::now();
  const BatchReport report = engine.run_batch(options.input, as_json && !to_stdout ? options.output : "", batch);
  bar.reset();
  return report_batch(report, seconds_since(start));
}

Request prompt_request(GenerateOptions& options) {
  if (!options.has_prompt) {
    if (is_terminal(stdin)) throw UsageError("give a prompt, --input FILE, or text on standard input");
    options.prompt.assign(std::istreambuf_iterator<char>(std::cin), {});
  }
  Request request;
  request.sampling_params = options.batch.sampling_params;
  request.return_logprob = options.batch.return_logprob;
  request.top_logprobs_num = options.batch.top_logprobs_num;
  if (options.chat || !options.system.empty()) {
    request.messages_json = chat_messages(options);
  } else {
    request.prompt = options.prompt;
  }
  return request;
}

bool wants_json(const GenerateOptions& options) {
  if (!options.format.empty()) return options.format == "jsonl";
  return !options.input.empty() || options.output.ends_with(".jsonl") || options.output.ends_with(".json");
}

int generate_prompt(GenerateOptions& options, bool as_json) {
  Request request = prompt_request(options);
  Engine engine(options.server_args);
  int code = kExitOk;
  {
    const InterruptScope scope([&engine] { engine.abort_all(); });
    const bool streamed = options.output.empty() && !as_json && request.sampling_params.n == 1;
    code =
        streamed ? stream_one(engine, std::move(request)) : generate_one(engine, std::move(request), options, as_json);
  }
  engine.shutdown();
  return code;
}

int generate_file(GenerateOptions& options, bool as_json) {
  if (options.has_prompt) throw UsageError("give a prompt or --input, not both");
  if (options.input != "-" && !std::ifstream(options.input)) {  // before a model is loaded for nothing
    throw Error(ErrorKind::kValue, options.input + ": cannot be opened");
  }
  Engine engine(options.server_args);
  int code = kExitOk;
  {
    const InterruptScope scope([] {});  // on_progress looks
    code = run_batch(engine, options, as_json);
  }
  engine.shutdown();
  return code;
}

int run_generate(GenerateOptions& options, bool log_level_given) {
  try {
    options.batch.sampling_params.validate();
  } catch (const Error& error) {
    throw UsageError(error.what());
  }
  if (!log_level_given) options.server_args.log_level = "warning";
  check_server_args(options.server_args);
  const bool as_json = wants_json(options);
  options.batch.return_logprob |= options.batch.top_logprobs_num != 0;
  if (options.batch.return_logprob && !as_json) throw UsageError("logprobs need --format jsonl");
  return options.input.empty() ? generate_prompt(options, as_json) : generate_file(options, as_json);
}

}  // namespace

Command add_generate(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("generate", "Continue a prompt, or a file of prompts");
  auto options = std::make_shared<GenerateOptions>();
  auto* prompt = app->add_option("prompt", options->prompt, "Text to continue; standard input where it is left out");
  app->add_option("-i,--input", options->input,
                  "JSON lines: prompt | input_ids | messages, sampling_params, custom_id; or OpenAI's batch lines "
                  "('-': standard input)");
  app->add_option("-o,--output", options->output,
                  "File for the results (default: standard output); with --input, a file that a run was cut off "
                  "from is completed");
  app->add_option("--format", options->format, "text (in the input's order) or jsonl (each as it finishes)")
      ->check(CLI::IsMember({"text", "jsonl"}));
  app->add_flag("--ordered", options->batch.ordered, "With --input: results in the input's order (text always is)");
  app->add_flag("--overwrite", options->batch.overwrite, "With --input: throw away the output of an earlier run");
  app->add_option_function<std::string>(
      "--error-file", [options](const std::string& path) { options->batch.error_path = path; },
      "With --input: file for the lines that fail (default: the output's name with .errors before its suffix)");
  app->add_flag("--chat", options->chat, "Put the prompt through the model's chat template as a user's message");
  app->add_option("--system", options->system, "System message; implies --chat");
  app->add_flag("--return-logprob", options->batch.return_logprob, "Logprobs of the generated tokens (jsonl)");
  app->add_option("--top-logprobs-num", options->batch.top_logprobs_num,
                  "The likeliest tokens of each step too; implies --return-logprob (jsonl)");
  app->add_flag("--no-progress", options->no_progress, "No progress bar");
  add_sampling_flags(*app, options->batch.sampling_params);
  add_server_args_flags(*app, options->server_args);
  return {app, [app, prompt, options] {
            options->has_prompt = prompt->count() > 0;
            return run_generate(*options, app->get_option("--log-level")->count() > 0);
          }};
}

}  // namespace tokenmill::cli
