#include "base/log.h"

#include <spdlog/fmt/chrono.h>
#include <spdlog/logger.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <chrono>
#include <utility>

#include "tokenmill/error.h"

namespace tokenmill {
namespace {

LogLevel parse_level(std::string_view name) {
  if (name == "debug") return LogLevel::kDebug;
  if (name == "info") return LogLevel::kInfo;
  if (name == "warning") return LogLevel::kWarning;
  if (name == "error") return LogLevel::kError;
  if (name == "critical") return LogLevel::kCritical;
  throw Error(ErrorKind::kValue,
              "log_level must be debug, info, warning, error or critical, got " + std::string(name) + ".");
}

// Writes whole lines to stderr; spdlog's sink locks, so lines of several threads and engines do not mix.
Logger::Sink stderr_sink() {
  auto output = std::make_shared<spdlog::logger>("tokenmill", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  output->set_pattern("%v");
  output->set_level(spdlog::level::trace);
  output->flush_on(spdlog::level::trace);
  return [output](LogLevel, const std::string& line) {
    output->log(spdlog::level::info, spdlog::string_view_t(line.data(), line.size()));
  };
}

}  // namespace

Logger::Logger(std::string_view level_name, Sink sink)
    : level_(parse_level(level_name)), sink_(sink ? std::move(sink) : stderr_sink()) {}

void Logger::log(LogLevel level, std::string_view text, bool with_rank) const {
  if (!enabled(level)) return;
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  sink_(level, fmt::format("[{:%Y-%m-%d %H:%M:%S}{}] {}", fmt::localtime(now), with_rank ? " TP0" : "", text));
}

}  // namespace tokenmill
