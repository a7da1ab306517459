// The kinds of `tokenmill verify`, one function each; verify.h says what they write.
#pragma once

#include <ostream>

#include "verify/json_lines.h"
#include "verify/verify.h"

namespace tokenmill {

void verify_gen(const VerifyOptions& options, JsonLinesWriter& out);
// Returns the number of models that were skipped, each named on err.
int verify_tiny(const VerifyOptions& options, JsonLinesWriter& out, std::ostream& err);
void verify_encode(const VerifyOptions& options, JsonLinesWriter& out);
void verify_stream(const VerifyOptions& options, JsonLinesWriter& out);
void verify_chat(const VerifyOptions& options, JsonLinesWriter& out);

}  // namespace tokenmill
