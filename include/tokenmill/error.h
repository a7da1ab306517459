// The typed error every tokenmill call throws. Standard library only.
//
// Load and configuration errors and rejected arguments throw Error; what goes wrong with one request of
// several is a value in its Output (FinishReason::kAbort), never an exception.
#pragma once

#include <stdexcept>
#include <string>

#include "tokenmill/export.h"

namespace tokenmill {

enum class ErrorKind {
  kType,         // an unknown field or key, or a value of the wrong type (Python: TypeError)
  kValue,        // a value out of its range, an over-long prompt, a bad file (Python: ValueError)
  kUnsupported,  // understood, but this build cannot do it (Python: NotImplementedError)
  kRuntime,      // the engine failed or was shut down while the call waited (Python: RuntimeError)
};

class TOKENMILL_API Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

}  // namespace tokenmill
