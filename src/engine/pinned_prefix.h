// A PinnedPrefix's inside.
#pragma once

#include <memory>
#include <utility>

#include "engine/engine_core.h"

namespace tokenmill {

class TOKENMILL_LOCAL PinnedPrefix::Impl {
 public:
  Impl(std::weak_ptr<EngineCore> core, uint64_t pin, int64_t tokens)
      : core_(std::move(core)), pin_(pin), tokens_(tokens) {}
  ~Impl() { release(); }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  int64_t tokens() const { return tokens_; }
  void release() {
    const auto core = core_.lock();
    core_.reset();
    if (core) core->unpin(pin_);
  }

 private:
  std::weak_ptr<EngineCore> core_;
  uint64_t pin_;
  int64_t tokens_;
};

}  // namespace tokenmill
