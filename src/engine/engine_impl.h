// What the public Engine holds: today one EngineCore.
#pragma once

#include <memory>
#include <utility>

#include "engine/engine_core.h"
#include "engine/model_loader.h"
#include "tokenmill/engine.h"

namespace tokenmill {

class TOKENMILL_LOCAL Engine::Impl {
 public:
  // The core must have been started. Streams keep a weak pointer to it.
  explicit Impl(std::shared_ptr<EngineCore> engine_core) : core(std::move(engine_core)) {}

  std::shared_ptr<EngineCore> core;
  LoadTimings timings;
  double start_s = 0;  // of the constructor, all in all
};

}  // namespace tokenmill
