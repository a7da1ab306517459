// tokenmill generate: one prompt as streamed text, or JSON lines in and out with a progress bar.
#include <CLI/CLI.hpp>
#include <condition_variable>
#include <deque>
#include <fstream>
#include <future>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>

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
  Request base;  // sampling_params and logprob settings
  std::string prompt, system, input, output, format;
  bool has_prompt = false, chat = false, no_progress = false;
};

bool is_abort(const Output& output) {
  return output.finished() && output.meta_info.finish_reason->type == FinishReason::Type::kAbort;
}

// Takes finished samples and writes each at once (JSON lines) or in the input's order (text).
class ResultWriter {
 public:
  ResultWriter(const std::string& path, bool as_json) : as_json_(as_json) {
    if (path.empty() || path == "-") return;
    file_.open(path, std::ios::binary | std::ios::trunc);
    if (!file_) throw Error(ErrorKind::kValue, path + ": cannot be opened for writing");
    path_ = path;
  }

  // position: the prompt's place in the input (output.index counts samples too).
  void add(const Output& output, int64_t position, const InputItem& item) {
    if (!as_json_) {
      held_[output.index] = output.text;
      write_in_order();
      return;
    }
    ordered_json line;
    if (!item.custom_id.is_null()) line["custom_id"] = item.custom_id;
    line["index"] = position;
    if (item.request.sampling_params.n > 1) line["sample"] = output.sample;
    line.update(output_to_json(output));
    write(dump_line(line) + "\n");
  }

  // What waited for a predecessor that will not come.
  void finish() {
    for (const auto& [index, text] : held_) write(text + "\n");
    held_.clear();
  }

 private:
  void write_in_order() {
    for (auto it = held_.find(next_); it != held_.end(); it = held_.find(next_)) {
      write(it->second + "\n");
      held_.erase(it);
      ++next_;
    }
  }
  void write(const std::string& text) {
    std::ostream& out = path_.empty() ? std::cout : file_;
    out << text << std::flush;
    if (!out) throw Error(ErrorKind::kRuntime, (path_.empty() ? "standard output" : path_) + ": cannot be written");
  }

  bool as_json_;
  std::string path_;
  std::ofstream file_;
  std::map<int64_t, std::string> held_;  // texts whose turn has not come, by Output::index
  int64_t next_ = 0;
};

// Finished outputs from the engine's output thread to the main thread.
class Inbox {
 public:
  void push(Output&& output) {
    const std::lock_guard lock(mutex_);
    outputs_.push_back(std::move(output));
    ready_.notify_one();
  }
  std::deque<Output> take(std::chrono::milliseconds timeout) {
    std::unique_lock lock(mutex_);
    ready_.wait_for(lock, timeout, [&] { return !outputs_.empty(); });
    return std::exchange(outputs_, {});
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<Output> outputs_;
};

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
  print_summary(last.completion_tokens, last.prompt_tokens, last.cached_tokens,
                std::chrono::duration<double>(Clock::now() - start).count());
  if (interrupted()) return kExitInterrupted;
  if (last.finish_reason && last.finish_reason->type == FinishReason::Type::kAbort) {
    throw Error(ErrorKind::kRuntime, last.finish_reason->message);
  }
  return kExitOk;
}

struct BatchCounts {
  int64_t done = 0, failed = 0, tokens = 0, prompt_tokens = 0, cached = 0;
};

void take_output(const Output& output, int64_t position, const InputItem& item, ResultWriter& writer,
                 BatchCounts& counts) {
  ++counts.done;
  if (is_abort(output) && interrupted()) return;  // cut off, not a result
  if (is_abort(output)) {
    ++counts.failed;
    std::fprintf(stderr, "request %lld: %s\n", static_cast<long long>(position),
                 output.meta_info.finish_reason->message.c_str());
  }
  counts.tokens += output.meta_info.completion_tokens;
  if (output.sample == 0) {
    counts.prompt_tokens += output.meta_info.prompt_tokens;
    counts.cached += output.meta_info.cached_tokens;
  }
  writer.add(output, position, item);
}

int run_batch(Engine& engine, const std::vector<InputItem>& items, const GenerateOptions& options,
              ResultWriter& writer) {
  std::vector<size_t> positions;  // Output::index -> item
  std::vector<Request> requests;
  for (const InputItem& item : items) {
    positions.insert(positions.end(), static_cast<size_t>(item.request.sampling_params.n), requests.size());
    requests.push_back(item.request);
  }
  const auto total = static_cast<int64_t>(positions.size());
  // Shared with the callback: an error below leaves requests running that still deliver.
  const auto inbox = std::make_shared<Inbox>();
  BatchCounts counts;
  const auto start = Clock::now();
  {
    // Results and a bar on one terminal would run into each other.
    ProgressBar bar(total, !options.no_progress && (!options.output.empty() || !is_terminal(stdout)));
    // Tokenising a long list takes its time, so submit() has a thread of its own.
    auto submitted = std::async(std::launch::async, [&engine, &requests, inbox] {
      return engine.submit(std::move(requests), [inbox](Output&& output) {
        if (output.finished()) inbox->push(std::move(output));
        return !interrupted();
      });
    });
    while (counts.done < total) {
      for (const Output& output : inbox->take(std::chrono::milliseconds(100))) {
        const size_t position = positions.at(static_cast<size_t>(output.index));
        take_output(output, static_cast<int64_t>(position), items[position], writer, counts);
      }
      bar.update(counts.done, counts.tokens);
      if (interrupted()) engine.abort_all();  // what came in after Ctrl-C too
      if (submitted.valid() && submitted.wait_for(std::chrono::seconds(0)) == std::future_status::ready) {
        submitted.get();  // rethrows what the whole call was refused for
      }
    }
    if (submitted.valid()) submitted.get();
  }
  writer.finish();
  print_summary(counts.tokens, counts.prompt_tokens, counts.cached,
                std::chrono::duration<double>(Clock::now() - start).count());
  if (interrupted()) return kExitInterrupted;
  if (counts.failed == 0) return kExitOk;
  std::fprintf(stderr, "%lld of %lld failed\n", static_cast<long long>(counts.failed), static_cast<long long>(total));
  return kExitFailure;
}

std::vector<InputItem> collect_items(GenerateOptions& options) {
  if (!options.input.empty()) {
    if (options.has_prompt) throw UsageError("give a prompt or --input, not both");
    if (options.input == "-") return read_requests(std::cin, "standard input", options.base);
    std::ifstream file(options.input, std::ios::binary);
    if (!file) throw Error(ErrorKind::kValue, options.input + ": cannot be opened");
    return read_requests(file, options.input, options.base);
  }
  if (!options.has_prompt) {
    if (is_terminal(stdin)) throw UsageError("give a prompt, --input FILE, or text on standard input");
    options.prompt.assign(std::istreambuf_iterator<char>(std::cin), {});
  }
  InputItem item{options.base, nullptr};
  if (options.chat || !options.system.empty()) {
    item.request.messages_json = chat_messages(options);
  } else {
    item.request.prompt = options.prompt;
  }
  return {std::move(item)};
}

bool wants_json(const GenerateOptions& options) {
  if (!options.format.empty()) return options.format == "jsonl";
  return !options.input.empty() || options.output.ends_with(".jsonl") || options.output.ends_with(".json");
}

int run_generate(GenerateOptions& options, bool log_level_given) {
  try {
    options.base.sampling_params.validate();
  } catch (const Error& error) {
    throw UsageError(error.what());
  }
  if (!log_level_given) options.server_args.log_level = "warning";
  check_server_args(options.server_args);
  const bool as_json = wants_json(options);
  options.base.return_logprob |= options.base.top_logprobs_num != 0;
  if (options.base.return_logprob && !as_json) throw UsageError("logprobs need --format jsonl");
  const std::vector<InputItem> items = collect_items(options);
  ResultWriter writer(options.output, as_json);
  Engine engine(options.server_args);
  int code = kExitOk;
  {
    const InterruptScope scope([&engine] { engine.abort_all(); });
    const bool one = items.size() == 1 && options.input.empty() && options.output.empty() && !as_json &&
                     items[0].request.sampling_params.n == 1;
    code = one ? stream_one(engine, items[0].request) : run_batch(engine, items, options, writer);
  }
  engine.shutdown();
  return code;
}

}  // namespace

Command add_generate(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("generate", "Continue a prompt, or a file of prompts");
  auto options = std::make_shared<GenerateOptions>();
  auto* prompt = app->add_option("prompt", options->prompt, "Text to continue; standard input where it is left out");
  app->add_option("-i,--input", options->input,
                  "JSON lines: prompt | input_ids | messages, sampling_params, custom_id ('-': standard input)");
  app->add_option("-o,--output", options->output, "File for the results (default: standard output)");
  app->add_option("--format", options->format, "text (in the input's order) or jsonl (each as it finishes)")
      ->check(CLI::IsMember({"text", "jsonl"}));
  app->add_flag("--chat", options->chat, "Put the prompt through the model's chat template as a user's message");
  app->add_option("--system", options->system, "System message; implies --chat");
  app->add_flag("--return-logprob", options->base.return_logprob, "Logprobs of the generated tokens (jsonl)");
  app->add_option("--top-logprobs-num", options->base.top_logprobs_num,
                  "The likeliest tokens of each step too; implies --return-logprob (jsonl)");
  app->add_flag("--no-progress", options->no_progress, "No progress bar");
  add_sampling_flags(*app, options->base.sampling_params);
  add_server_args_flags(*app, options->server_args);
  return {app, [app, prompt, options] {
            options->has_prompt = prompt->count() > 0;
            return run_generate(*options, app->get_option("--log-level")->count() > 0);
          }};
}

}  // namespace tokenmill::cli
