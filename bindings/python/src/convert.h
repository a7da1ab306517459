// Python objects <-> the types of include/tokenmill. All of it needs the GIL.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <string>
#include <vector>

#include "mailbox.h"
#include "tokenmill/engine.h"
#include "tokenmill/option_value.h"

namespace tokenmill::python {

namespace nb = nanobind;

// TypeError, ValueError, NotImplementedError or EngineError, with the error's message.
[[noreturn]] void raise_error(const Error& error);
nb::object exception_of(const Error& error);
// The class that kRuntime becomes; set when the module is made.
void set_engine_error(nb::object type);

// The text. Throws Error: kType where it is none, kValue where it has a lone surrogate, which it tells, and the remedy.
// place: " of the prompt at position 3", for messages.
std::string to_utf8(const std::string& name, nb::handle text, const std::string& place = "");
// None, bool, int, float, str, a sequence of int or of str, or a mapping of int to float; numpy's scalars and arrays
// too. Throws Error(kType) naming the option.
OptionValue to_option_value(const std::string& name, nb::handle value);
nb::object from_option_value(const OptionValue& value);
// A sequence of whole numbers that fit in 32 bits; numpy's too. Throws Error.
std::vector<int32_t> to_token_ids(const char* name, nb::handle ids);

// {"text": …, "output_ids": […], "meta_info": {…}} as the contract has it; with_index adds "index".
nb::dict to_dict(const Output& output, bool with_index, bool with_logprobs);

}  // namespace tokenmill::python
