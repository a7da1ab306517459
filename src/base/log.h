// Log lines to stderr in SGLang's form, "[2026-11-23 10:00:00 TP0] text", and nothing to stdout.
//
// A Logger belongs to one engine; there is no global one. A sink may be set instead of stderr (Python's logging);
// it gets whole lines, prefix included.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "tokenmill/log.h"

namespace tokenmill {

class Logger {
 public:
  using Sink = LogSink;
  // level_name: debug, info, warning, error, critical; anything else throws Error(kValue).
  explicit Logger(std::string_view level_name, Sink sink = nullptr);
  bool enabled(LogLevel level) const { return level >= level_; }
  // with_rank: put " TP0" into the prefix.
  void log(LogLevel level, std::string_view text, bool with_rank = true) const;
  void info(std::string_view text) const { log(LogLevel::kInfo, text); }
  void warning(std::string_view text) const { log(LogLevel::kWarning, text); }
  void error(std::string_view text) const { log(LogLevel::kError, text); }

 private:
  LogLevel level_;
  Sink sink_;
};

}  // namespace tokenmill
