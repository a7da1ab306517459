// custom_logit_processor: a Python callable that the engine's thread calls under the GIL, and only for requests that
// have one.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>

#include "tokenmill/sampling_params.h"

namespace tokenmill::python {

// None or a callable (output_ids, logits); throws Error(kType) otherwise.
std::shared_ptr<const LogitProcessor> to_logit_processor(nanobind::handle callable);

// The interpreter is about to go: callables that are let go of from now on are left to it.
void leave();

}  // namespace tokenmill::python
