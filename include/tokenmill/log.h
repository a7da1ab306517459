// Where an engine's log lines go: stderr unless a sink is given. Standard library only.
#pragma once

#include <functional>
#include <string>

namespace tokenmill {

enum class LogLevel { kDebug, kInfo, kWarning, kError, kCritical };

// Gets whole lines without the newline, prefix included: "[2026-11-23 10:00:00 TP0] text". Called from any of the
// engine's threads, also at once; must not throw and must not call the engine.
using LogSink = std::function<void(LogLevel, const std::string& line)>;

}  // namespace tokenmill
