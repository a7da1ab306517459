#include "engine/model_loader.h"

#include <fmt/format.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <sstream>
#include <utility>

#include "checkpoint/checkpoint.h"
#include "checkpoint/model_path.h"
#include "engine/pool_size.h"
#include "engine/text_repr.h"
#include "models/packing.h"
#include "ops/backend_registry.h"

namespace tokenmill {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

struct LoadedTokenizer {
  std::shared_ptr<const Tokenizer> tokenizer;
  double seconds = 0;
};

struct LoadedBackend {
  std::unique_ptr<Backend> backend;
  double seconds = 0;
};

LoadedBackend load_backend(const ServerArgs& args) {
  const auto start = Clock::now();
  auto backend = make_backend(*args.device, {.num_threads = static_cast<int>(args.num_threads.value_or(0)), .isa = ""},
                              args.enable_deterministic_inference.value_or(false));
  return {std::move(backend), seconds_since(start)};
}

LoadedTokenizer load_tokenizer(const TokenizerSource& source) {
  const auto start = Clock::now();
  auto tokenizer =
      source.gguf_path.empty() ? Tokenizer::from_folder(source.folder) : Tokenizer::from_gguf(source.gguf_path);
  return {std::move(tokenizer), seconds_since(start)};
}

TokenizerSource tokenizer_source(const ServerArgs& args, const Checkpoint& checkpoint,
                                 const CheckpointOptions& options) {
  if (*args.tokenizer_path == args.model_path) return checkpoint.tokenizer_source();
  CheckpointOptions no_weights = options;
  no_weights.tokenizer_only = true;
  no_weights.revision.clear();  // the model's, not this repository's
  const ModelPath path = resolve_model_path(*args.tokenizer_path, no_weights);
  TokenizerSource source;
  (path.is_gguf ? source.gguf_path : source.folder) = path.path;
  return source;
}

// A Jinja file, or the template itself.
std::string read_chat_template(const std::string& text) {
  if (text.find("{%") != std::string::npos || text.find("{{") != std::string::npos) return text;
  std::ifstream file(text, std::ios::binary);
  std::ostringstream content;
  if (!file || std::filesystem::is_directory(text) || !(content << file.rdbuf()) || content.str().empty()) {
    throw Error(ErrorKind::kValue,
                "chat_template must be a readable Jinja file, or a template's text with {{ }} or "
                "{% %} in it, got " +
                    python_repr(text) + ".");
  }
  return content.str();
}

// What the packed weights take; padding to whole tiles apart.
int64_t packed_bytes(const Checkpoint& checkpoint, Packing packing) {
  int64_t total = 0;
  for (const RawTensor* tensor : checkpoint.tensors()) {
    const int64_t values = tensor->rows() * tensor->cols();
    if (packing == Packing::kFloat32) {
      total += values * 4;
    } else if (packing == Packing::kNative && info(tensor->type).quantized) {
      total += static_cast<int64_t>(tensor->bytes());
    } else {
      total += values * 2;
    }
  }
  return total;
}

void require_memory(const ServerArgs& args, int64_t needed, int64_t available) {
  const bool own_memory = device_defaults(*args.device).own_memory;
  if (available == 0 || needed <= available) return;
  throw Error(ErrorKind::kRuntime,
              fmt::format("Not enough memory for the model {}: its weights need {} GB with dtype {}, and {} GB are "
                          "available on device {}. Use a smaller {}model, or {}.",
                          args.model_path, gib_text(needed), python_repr(args.dtype), gib_text(available),
                          python_repr(*args.device), own_memory ? "" : "or a quantised ",
                          own_memory ? "end what else holds the device's memory" : "raise the memory limit"));
}

// "Loading safetensors checkpoint shards:  25% Completed | 1/4 [00:00<00:02,  1.23it/s]"
std::string progress_line(const std::string& format, int64_t done, int64_t total, double elapsed) {
  const auto clock_text = [](double seconds) {
    const auto whole = static_cast<int64_t>(seconds);
    return fmt::format("{:02}:{:02}", whole / 60, whole % 60);
  };
  const double rate = elapsed > 0 ? static_cast<double>(done) / elapsed : 0;
  const double left = rate > 0 ? static_cast<double>(total - done) / rate : 0;
  return fmt::format("Loading {} checkpoint shards: {:3}% Completed | {}/{} [{}<{}, {:5.2f}it/s]", format,
                     total > 0 ? 100 * done / total : 100, done, total, clock_text(elapsed), clock_text(left), rate);
}

void require_going(const KeepGoing& keep_going) {
  if (keep_going && !keep_going()) throw Error(ErrorKind::kRuntime, "Loading the model was stopped.");
}

LoadedTokenizer wait_for(std::future<LoadedTokenizer>& tokenizer, const KeepGoing& keep_going) {
  while (tokenizer.wait_for(std::chrono::milliseconds(50)) != std::future_status::ready) require_going(keep_going);
  return tokenizer.get();
}

}  // namespace

EngineParts load_parts(const ServerArgs& args, const Logger& logger, const KeepGoing& keep_going,
                       LoadTimings& timings) {
  EngineParts parts;
  auto start = Clock::now();
  if (args.chat_template) parts.chat_template = read_chat_template(*args.chat_template);
  // A device takes its time to start; the headers are read meanwhile.
  std::future<LoadedBackend> backend =
      std::async(device_defaults(*args.device).own_memory ? std::launch::async : std::launch::deferred, load_backend,
                 std::cref(args));
  const CheckpointOptions options{.load_format = args.load_format,
                                  .model_override_json = args.json_model_override_args,
                                  .revision = args.revision.value_or(""),
                                  .download_dir = args.download_dir.value_or(""),
                                  .dummy_seed = static_cast<uint64_t>(*args.random_seed),
                                  .logger = &logger,
                                  .keep_going = keep_going};
  const std::unique_ptr<Checkpoint> checkpoint = Checkpoint::open(args.model_path, options);
  parts.files = ModelFiles(*checkpoint, options);
  LoadedBackend loaded_backend = backend.get();
  parts.backend = std::move(loaded_backend.backend);
  const Packing packing = choose_packing(args.dtype, checkpoint->config(), *parts.backend);
  timings.device_s = loaded_backend.seconds;
  parts.available_before_load = parts.backend->available_memory();
  logger.info("Load weight begin. avail mem=" + gib_text(parts.available_before_load) + " GB");
  const Packing held = packing == Packing::kNative && !parts.backend->keeps_quantized() ? Packing::kBFloat16 : packing;
  require_memory(args, packed_bytes(*checkpoint, held), parts.available_before_load);
  timings.open_s = seconds_since(start);

  std::future<LoadedTokenizer> tokenizer;
  if (!args.skip_tokenizer_init) {
    tokenizer = std::async(std::launch::async, load_tokenizer, tokenizer_source(args, *checkpoint, options));
  }
  start = Clock::now();
  int64_t told = 0;
  parts.model = load_model(*checkpoint, *parts.backend, packing, [&](int64_t done, int64_t total) {
    require_going(keep_going);
    if (std::exchange(told, done) == done) return;
    logger.info(progress_line(checkpoint->format(), done, total, seconds_since(start)));
  });
  timings.weights_s = seconds_since(start);
  logger.info(fmt::format("Load weight end. type={}, dtype={}, avail mem={} GB", checkpoint->config().architecture,
                          dtype_name(packing), gib_text(parts.backend->available_memory())));
  if (tokenizer.valid()) {
    LoadedTokenizer loaded = wait_for(tokenizer, keep_going);
    parts.tokenizer = std::move(loaded.tokenizer);
    timings.tokenizer_s = loaded.seconds;
  }
  return parts;
}

}  // namespace tokenmill
