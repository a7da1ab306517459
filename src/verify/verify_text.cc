// The kinds that need a tokenizer or a chat template only.
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "text/chat_template.h"
#include "text/text_stream.h"
#include "text/tokenizer.h"
#include "tokenmill/error.h"
#include "verify/kinds.h"
#include "verify/open_model.h"

namespace tokenmill {

namespace {

// The clock that the golden conversations were rendered at.
constexpr const char* kFrozenNow = "2024-07-26 12:00:00";

}  // namespace

std::shared_ptr<const Tokenizer> open_tokenizer(const TokenizerSource& source) {
  return source.gguf_path.empty() ? Tokenizer::from_folder(source.folder) : Tokenizer::from_gguf(source.gguf_path);
}

std::shared_ptr<const Tokenizer> open_tokenizer(const std::string& model_path) {
  const std::filesystem::path path(model_path);
  if (std::filesystem::is_directory(path)) return Tokenizer::from_folder(model_path);
  if (path.extension() == ".gguf") return Tokenizer::from_gguf(model_path);
  return open_tokenizer(Checkpoint::open(model_path, {})->tokenizer_source());
}

void verify_encode(const VerifyOptions& options, JsonLinesWriter& out) {
  const auto tokenizer = open_tokenizer(options.model_path);
  for (const Json& line : read_json_lines(options.in)) {
    if (!line.is_string()) {
      throw Error(ErrorKind::kValue, options.in + ": every line must be a JSON string, got " + line.dump() + ".");
    }
    const std::string text = line.get<std::string>();
    const std::vector<int32_t> ids = tokenizer->encode(text, false);
    out.write({{"ids", ids},
               {"ids_special", tokenizer->encode(text, true)},
               {"dec", tokenizer->decode(ids, false)},
               {"dec_skip", tokenizer->decode(ids, true)}});
  }
}

void verify_stream(const VerifyOptions& options, JsonLinesWriter& out) {
  const auto tokenizer = open_tokenizer(options.model_path);
  for (const Json& line : read_json_lines(options.in)) {
    TextStreamOptions stream_options;
    stream_options.skip_special_tokens = line.value("skip_special", false);
    TextStream stream(tokenizer, {}, stream_options);
    Json pieces = Json::array();
    for (const int32_t id : line.at("ids").get<std::vector<int32_t>>()) {
      pieces.push_back(stream.append(std::span(&id, 1), 0));
    }
    out.write({{"pieces", pieces}, {"flush", stream.finish(-1)}});
  }
}

void verify_chat(const VerifyOptions& options, JsonLinesWriter& out) {
  const std::filesystem::path folder(options.in);
  const std::filesystem::path templates =
      options.templates.empty() ? folder / "templates" : std::filesystem::path(options.templates);
  for (const Json& line : read_json_lines((folder / "goldens.jsonl").string())) {
    const std::string name = line.at("template").get<std::string>() + ".jinja";
    ChatTemplateInput input;
    input.messages_json = line.at("messages").dump();
    input.kwargs_json = line.at("kwargs").dump();
    input.bos_token = line.at("bos_token").get<std::string>();
    input.eos_token = line.at("eos_token").get<std::string>();
    input.frozen_now = kFrozenNow;
    const std::string text = read_text_file((templates / name).string());
    try {
      out.write({{"text", render_chat_template(text, input)}});
    } catch (const Error& error) {
      out.write({{"error", error.what()}});
    }
  }
}

}  // namespace tokenmill
