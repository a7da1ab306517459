// From a model path to the parts of an engine: opens, checks memory, loads weights and tokenizer side by side.
#pragma once

#include <cstdint>

#include "base/log.h"
#include "engine/engine_core.h"
#include "tokenmill/engine.h"

namespace tokenmill {

struct LoadTimings {
  double open_s = 0;    // of which device_s went by beside the rest
  double device_s = 0;  // until the backend was ready
  double weights_s = 0;
  double tokenizer_s = 0;  // beside the weights
};

// args resolved; keep_going may be null. Throws Error naming the file, the key and the remedy.
EngineParts load_parts(const ServerArgs& args, const Logger& logger, const KeepGoing& keep_going, LoadTimings& timings);

}  // namespace tokenmill
