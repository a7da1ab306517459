// tokenmill tokenize: text to ids and back with a model's own tokenizer; no weight is loaded.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <iostream>
#include <iterator>
#include <memory>

#include "cli/command.h"
#include "cli/jsonl.h"
#include "cli/terminal.h"
#include "tokenmill/error.h"
#include "verify/tokenizer_access.h"

namespace tokenmill::cli {
namespace {

struct TokenizeOptions {
  std::string model_path, text;
  bool has_text = false, add_special = false, decode = false, skip_special = false, pieces = false, count = false;
};

std::vector<int32_t> parse_ids(const std::string& text) {
  const size_t start = text.find_first_not_of(" \t\n");
  const bool bracketed = start != std::string::npos && text[start] == '[';
  nlohmann::json list;
  try {
    list = parse_json(bracketed ? text : "[" + text + "]");
  } catch (const std::exception&) {
    list = nullptr;
  }
  if (!list.is_array()) throw UsageError("--decode takes ids such as 1,2,3 or [1, 2, 3]");
  std::vector<int32_t> ids;
  for (const auto& id : list) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > INT32_MAX) {
      throw UsageError("--decode takes ids such as 1,2,3 or [1, 2, 3]; got " + id.dump());
    }
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

int run_tokenize(TokenizeOptions& options) {
  if (!options.has_text) {
    if (is_terminal(stdin)) throw UsageError("give a text, or text on standard input");
    options.text.assign(std::istreambuf_iterator<char>(std::cin), {});
  }
  const TokenizerAccess tokenizer(options.model_path);
  if (options.decode) {
    const std::vector<int32_t> ids = parse_ids(options.text);
    for (const int32_t id : ids) {
      if (id >= tokenizer.vocab_size()) {
        throw Error(ErrorKind::kValue, "token id must be in [0, " + std::to_string(tokenizer.vocab_size()) + "), got " +
                                           std::to_string(id) + ".");
      }
    }
    std::cout << tokenizer.decode(ids, options.skip_special) << "\n";
    return kExitOk;
  }
  const std::vector<int32_t> ids = tokenizer.encode(options.text, options.add_special);
  if (options.count) {
    std::cout << ids.size() << "\n";
  } else if (options.pieces) {
    for (const int32_t id : ids) {
      const nlohmann::ordered_json piece = std::string(tokenizer.token_bytes(id));
      std::cout << id << "\t" << dump_line(piece) << "\n";
    }
  } else {
    std::cout << dump_line(ids) << "\n";
  }
  return kExitOk;
}

}  // namespace

Command add_tokenize(CLI::App& parent) {
  auto options = std::make_shared<TokenizeOptions>();
  CLI::App* app = parent.add_subcommand("tokenize", "Turn text into token ids, or back");
  app->add_option("-m,--model-path", options->model_path, "A model or tokenizer folder, or a .gguf file")->required();
  auto* text = app->add_option("text", options->text, "The text; standard input where it is left out");
  app->add_flag("--add-special-tokens", options->add_special, "Put in what the tokenizer adds to a prompt");
  auto* pieces = app->add_flag("--pieces", options->pieces, "A line a token: id and text");
  auto* count = app->add_flag("--count", options->count, "Only the number of tokens");
  auto* decode = app->add_flag("--decode", options->decode, "The other way: ids such as 1,2,3 to text");
  app->add_flag("--skip-special-tokens", options->skip_special, "With --decode: leave special tokens out")
      ->needs(decode);
  pieces->excludes(count)->excludes(decode);
  count->excludes(decode);
  return {app, [text, options] {
            options->has_text = text->count() > 0;
            return run_tokenize(*options);
          }};
}

}  // namespace tokenmill::cli
