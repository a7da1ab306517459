// The floating-point mode of all CPU kernels: denormals are flushed, in and out, as the tile unit does.
#pragma once

#include <immintrin.h>

namespace tokenmill {

// Sets flush-to-zero and denormals-are-zero, round to nearest, all exceptions masked, in this thread.
inline void set_float_mode() { _mm_setcsr(0x9fc0); }

// The mode for a scope of the caller's own thread. parallel_for sets it by itself; ops that compute outside of one
// hold a scope.
class FloatModeScope {
 public:
  FloatModeScope() : callers_(_mm_getcsr()) { set_float_mode(); }
  ~FloatModeScope() { _mm_setcsr(callers_); }
  FloatModeScope(const FloatModeScope&) = delete;
  FloatModeScope& operator=(const FloatModeScope&) = delete;

 private:
  unsigned callers_;
};

}  // namespace tokenmill
