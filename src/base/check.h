// Invariants of our own code. A broken one throws InvariantError, which ends the engine, never the process.
#pragma once

#include <stdexcept>
#include <string>

namespace tokenmill {

class InvariantError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

[[noreturn]] inline void check_failed(const char* file, int line, const char* condition) {
  throw InvariantError(std::string("internal error: ") + file + ":" + std::to_string(line) + ": " + condition);
}

}  // namespace tokenmill

#define TM_CHECK(condition)                                                      \
  do {                                                                           \
    if (!(condition)) ::tokenmill::check_failed(__FILE__, __LINE__, #condition); \
  } while (0)
