#include "verify/verify.h"

#include <exception>
#include <nlohmann/json.hpp>

#include "tokenmill/error.h"
#include "verify/kinds.h"

namespace tokenmill {

namespace {

void require(const std::string& value, const std::string& flag, const std::string& kind) {
  if (value.empty()) throw Error(ErrorKind::kValue, "verify --kind " + kind + " needs " + flag + ".");
}

int run(const VerifyOptions& options, std::ostream& err) {
  const std::string& kind = options.kind;
  const bool with_model = kind == "gen" || kind == "encode" || kind == "stream";
  if (!with_model && kind != "tiny" && kind != "chat") {
    throw Error(ErrorKind::kValue, "kind must be one of gen, tiny, encode, stream, chat, got '" + kind + "'.");
  }
  require(options.in, "--in", kind);
  require(options.out, "--out", kind);
  if (with_model) require(options.model_path, "--model-path", kind);
  JsonLinesWriter out(options.out);
  int skipped = 0;
  if (kind == "gen") verify_gen(options, out);
  if (kind == "tiny") skipped = verify_tiny(options, out, err);
  if (kind == "encode") verify_encode(options, out);
  if (kind == "stream") verify_stream(options, out);
  if (kind == "chat") verify_chat(options, out);
  out.close();
  return skipped > 0 ? 1 : 0;
}

}  // namespace

int run_verify(const VerifyOptions& options, std::ostream& err) {
  try {
    return run(options, err);
  } catch (const nlohmann::json::exception& error) {
    err << "error: " << options.in << ": is not what --kind " << options.kind << " reads: " << error.what() << "\n";
    return 1;
  } catch (const std::exception& error) {
    err << "error: " << error.what() << "\n";
    return 1;
  }
}

}  // namespace tokenmill
