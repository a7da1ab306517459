// tokenmill bench: offline throughput and latency, set beside what this machine can do at most.
#include <unistd.h>
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <memory>

#include "cli/bench_workloads.h"
#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/jsonl.h"
#include "cli/plot.h"
#include "cli/roofs.h"
#include "cli/server_args_flags.h"
#include "cli/terminal.h"
#include "verify/model_info.h"

namespace tokenmill::cli {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

struct BenchOptions {
  ServerArgs server_args;
  BenchSettings settings;
  bool as_json = false, no_roofs = false;
  std::string plot_path;  // "": none
};

struct BenchReport {
  ModelInfo model;
  json server_info;
  double load_s = 0;
  int64_t packed_weight_bytes = 0;  // what a decode step reads
  int64_t resident_bytes = 0;       // of this process after loading
  int64_t num_threads = 0;
  std::optional<Roofs> roofs;
  std::string matrix_roof_name;  // which of the roofs these weights and dtype run against
  double matrix_roof = 0;
  PrefillResult prefill;
  std::vector<DecodeResult> decodes;
};

int64_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  int64_t total = 0, resident = 0;
  statm >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

void choose_matrix_roof(const std::string& dtype, BenchReport& report) {
  const Roofs& roofs = *report.roofs;
  const auto choose = [&](const char* name, double value) {
    report.matrix_roof_name = name;
    report.matrix_roof = value;
  };
  choose("fp32 FMA", roofs.fma_flops);
  if (dtype == "float32") return;
  if (report.model.quantized && dtype == "auto") {
    if (roofs.int8_dot_ops) choose("AVX-512 VNNI int8", *roofs.int8_dot_ops);
    if (roofs.amx_int8_ops) choose("AMX int8", *roofs.amx_int8_ops);
  } else {
    if (roofs.bf16_dot_flops && *roofs.bf16_dot_flops > report.matrix_roof)
      choose("AVX512_BF16", *roofs.bf16_dot_flops);
    if (roofs.amx_bf16_flops) choose("AMX bf16", *roofs.amx_bf16_flops);
  }
}

// `head_share` of the positions go through the head: all of a decode's, one of a prompt's.
double matrix_share(const BenchReport& report, double tokens_per_s, double head_share) {
  const double head = static_cast<double>(report.model.hidden_size) * static_cast<double>(report.model.vocab_size);
  const double parameters = static_cast<double>(report.model.matrix_parameters) - head * (1 - head_share);
  return tokens_per_s * 2 * parameters / report.matrix_roof;
}

double prefill_share(const BenchReport& report) {
  return matrix_share(report, report.prefill.tokens_per_s, 1.0 / static_cast<double>(report.prefill.tokens));
}

// A decode step reads all weights but an embedding that is only looked up; KV is left out.
double read_share(const BenchReport& report, const DecodeResult& decode) {
  const double steps_per_s = decode.tokens_per_s / static_cast<double>(decode.batch_size);
  const double read_part =
      static_cast<double>(report.model.matrix_parameters) / static_cast<double>(report.model.parameters);
  return steps_per_s * static_cast<double>(report.packed_weight_bytes) * std::min(read_part, 1.0) /
         report.roofs->read_bytes_per_s;
}

ordered_json roofs_to_json(const BenchReport& report) {
  if (!report.roofs) return nullptr;
  const auto optional = [](const std::optional<double>& value) {
    return value ? ordered_json(*value) : ordered_json(nullptr);
  };
  return {{"read_bytes_per_s", report.roofs->read_bytes_per_s},
          {"fma_flops", report.roofs->fma_flops},
          {"bf16_dot_flops", optional(report.roofs->bf16_dot_flops)},
          {"int8_dot_ops", optional(report.roofs->int8_dot_ops)},
          {"amx_bf16_flops", optional(report.roofs->amx_bf16_flops)},
          {"amx_int8_ops", optional(report.roofs->amx_int8_ops)},
          {"matrix_roof", report.matrix_roof_name}};
}

ordered_json to_json(const BenchReport& report) {
  ordered_json decodes = ordered_json::array();
  for (const DecodeResult& decode : report.decodes) {
    ordered_json row = {{"batch_size", decode.batch_size},
                        {"tokens_per_s", decode.tokens_per_s},
                        {"total_tokens_per_s", decode.total_tokens_per_s},
                        {"first_token_p50_s", decode.first_token_p50_s},
                        {"first_token_p99_s", decode.first_token_p99_s},
                        {"step_p50_s", decode.step_p50_s},
                        {"step_p99_s", decode.step_p99_s}};
    if (report.roofs) {
      row["read_roof_share"] = read_share(report, decode);
      row["matrix_roof_share"] = matrix_share(report, decode.tokens_per_s, 1);
    }
    decodes.push_back(std::move(row));
  }
  ordered_json prefill = {{"tokens", report.prefill.tokens},
                          {"seconds", report.prefill.seconds},
                          {"tokens_per_s", report.prefill.tokens_per_s}};
  if (report.roofs) prefill["matrix_roof_share"] = prefill_share(report);
  return {{"model", report.model.path},
          {"architecture", report.model.architecture},
          {"parameters", report.model.parameters},
          {"weight_format", report.model.formats.empty() ? "" : report.model.formats.front().name},
          {"num_threads", report.num_threads},
          {"load_s", report.load_s},
          {"packed_weight_bytes", report.packed_weight_bytes},
          {"resident_bytes", report.resident_bytes},
          {"roofs", roofs_to_json(report)},
          {"prefill", std::move(prefill)},
          {"decode", std::move(decodes)},
          {"server_info", report.server_info}};
}

void print_text(const BenchReport& report) {
  std::printf("%s, %s parameters, %s, %lld threads\n", report.model.architecture.c_str(),
              format_count(report.model.parameters).c_str(),
              report.model.formats.empty() ? "" : report.model.formats.front().name.c_str(),
              static_cast<long long>(report.num_threads));
  std::printf("load %.2f s, resident %s, weights %s (ratio %.2f)\n", report.load_s,
              format_bytes(static_cast<double>(report.resident_bytes)).c_str(),
              format_bytes(static_cast<double>(report.packed_weight_bytes)).c_str(),
              static_cast<double>(report.resident_bytes) / static_cast<double>(report.packed_weight_bytes));
  if (report.roofs) {
    std::printf("roofs measured now: read %.1f GB/s, %s %.0f G operations/s\n", report.roofs->read_bytes_per_s / 1e9,
                report.matrix_roof_name.c_str(), report.matrix_roof / 1e9);
  }
  std::printf("\n%-16s %10s %12s %12s %14s %12s\n", "", "tok/s", "read roof", "matrix roof", "first token ms",
              "step p99 ms");
  const auto share = [&](double value) {
    char text[16] = "-";
    if (report.roofs) std::snprintf(text, sizeof text, "%.1f %%", 100 * value);
    return std::string(text);
  };
  std::printf("prefill %-8lld %10.1f %12s %12s %14.1f %12s\n", static_cast<long long>(report.prefill.tokens),
              report.prefill.tokens_per_s, "-", share(report.roofs ? prefill_share(report) : 0).c_str(),
              1e3 * report.prefill.seconds, "-");
  for (const DecodeResult& decode : report.decodes) {
    std::printf("decode batch %-3lld %10.1f %12s %12s %14.1f %12.2f\n", static_cast<long long>(decode.batch_size),
                decode.tokens_per_s, share(report.roofs ? read_share(report, decode) : 0).c_str(),
                share(report.roofs ? matrix_share(report, decode.tokens_per_s, 1) : 0).c_str(),
                1e3 * decode.first_token_p50_s, 1e3 * decode.step_p99_s);
  }
}

void check_settings(const BenchSettings& settings) {
  // Bounds that no machine reaches, so that a slip of the finger does not eat its memory or time.
  const auto need = [](const char* flag, int64_t value, int64_t least, int64_t most) {
    if (value >= least && value <= most) return;
    throw UsageError(std::string(flag) + " must be in [" + std::to_string(least) + ", " + std::to_string(most) +
                     "], got " + std::to_string(value));
  };
  static constexpr int64_t kTokensMax = int64_t{1} << 24, kBatchMax = 65536, kRepeatMax = 10000;
  need("--prefill-length", settings.prefill_length, 1, kTokensMax);
  need("--input-length", settings.input_length, 1, kTokensMax);
  need("--output-length", settings.output_length, 2, kTokensMax);
  need("--repeat", settings.repeat, 1, kRepeatMax);
  for (const int64_t batch : settings.batch_sizes) need("--batch-sizes", batch, 1, kBatchMax);
}

void note(const std::string& text) {
  if (is_terminal(stderr)) std::fprintf(stderr, "%s\n", style(stderr, text, Style::kDim).c_str());
}

// Opened before anything runs, so that a bad path costs no benchmark.
std::ofstream open_plot(const std::string& path) {
  std::ofstream file;
  if (path.empty()) return file;
  file.open(path);
  if (!file) throw UsageError("--plot: cannot write " + path);
  return file;
}

int run_bench(BenchOptions& options, bool log_level_given) {
  check_settings(options.settings);
  std::ofstream plot = open_plot(options.plot_path);
  if (!log_level_given) options.server_args.log_level = "warning";
  check_server_args(options.server_args);
  BenchReport report;
  report.model = read_model_info(options.server_args);
  const Clock::time_point start = Clock::now();
  Engine engine(options.server_args);
  report.load_s = std::chrono::duration<double>(Clock::now() - start).count();
  report.resident_bytes = resident_bytes();
  report.server_info = json::parse(engine.server_info_json());
  report.packed_weight_bytes = report.server_info.at("model").at("weight_bytes").get<int64_t>();
  report.num_threads = engine.server_args().num_threads.value_or(1);
  // The roofs are the processor's.
  if (!options.no_roofs && engine.server_args().device == "cpu") {
    note("measuring what the machine can do");
    report.roofs = measure_roofs(static_cast<int>(report.num_threads));
    choose_matrix_roof(options.server_args.dtype, report);
  }
  std::optional<PlotRecorder> recorder;
  if (plot.is_open()) recorder.emplace(engine);
  try {
    const InterruptScope scope([&engine] { engine.abort_all(); });
    note("prefill");
    report.prefill = measure_prefill(engine, options.settings);
    for (const int64_t batch : options.settings.batch_sizes) {
      note("decode, batch " + std::to_string(batch));
      report.decodes.push_back(measure_decode(engine, options.settings, batch));
    }
  } catch (const Error&) {
    if (!interrupted() || report.prefill.tokens == 0) throw;  // what was measured before Ctrl-C is told
  }
  if (recorder) {
    recorder->stop();
    plot << plot_svg("tokenmill bench, " + report.model.path, recorder->samples()) << std::flush;
    if (!plot) throw Error(ErrorKind::kRuntime, "--plot: writing " + options.plot_path + " failed");
  }
  if (options.as_json) {
    std::printf("%s\n", to_json(report).dump(2, ' ', false, ordered_json::error_handler_t::replace).c_str());
  } else {
    print_text(report);
  }
  return interrupted() ? kExitInterrupted : kExitOk;
}

}  // namespace

Command add_bench(CLI::App& parent) {
  auto options = std::make_shared<BenchOptions>();
  BenchSettings& settings = options->settings;
  CLI::App* app = parent.add_subcommand("bench", "Measure offline throughput and latency with seeded random ids");
  app->add_option("--prefill-length", settings.prefill_length, "Tokens of the prefill run")->capture_default_str();
  app->add_option("--input-length", settings.input_length, "Prompt tokens of the decode runs")->capture_default_str();
  app->add_option("--output-length", settings.output_length, "Tokens each sequence generates in the decode runs")
      ->capture_default_str();
  app->add_option("--batch-sizes", settings.batch_sizes, "Sequences at once in the decode runs")
      ->capture_default_str()
      ->delimiter(',');
  app->add_option("--repeat", settings.repeat, "Runs of each; the median is told")->capture_default_str();
  app->add_option("--seed", settings.seed, "Seed of the token ids")->capture_default_str();
  app->add_flag("--json", options->as_json, "JSON instead of a table");
  app->add_option("--plot", options->plot_path, "Draw throughput, batch size and hit rate over time to this SVG file");
  app->add_flag("--no-roofs", options->no_roofs, "Do not measure the machine's own limits");
  add_server_args_flags(*app, options->server_args);
  return {app, [app, options] { return run_bench(*options, app->get_option("--log-level")->count() > 0); }};
}

}  // namespace tokenmill::cli
