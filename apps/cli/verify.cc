// tokenmill verify: what the engine computes, as JSON lines to be compared with reference values.
#include "verify/verify.h"

#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "cli/command.h"

namespace tokenmill::cli {

Command add_verify(CLI::App& parent) {
  auto options = std::make_shared<VerifyOptions>();
  CLI::App* app = parent.add_subcommand("verify", "Write what the engine computes for a set of reference values");
  app->add_option("--kind", options->kind, "What to compute")
      ->required()
      ->check(CLI::IsMember({"gen", "tiny", "encode", "stream", "chat"}));
  app->add_option("-m,--model-path", options->model_path, "The model (gen) or tokenizer (encode, stream)");
  app->add_option(
         "--in", options->in,
         "gen, stream: the reference file; encode: the corpus; tiny: a model folder or a folder of them; chat: "
         "the folder with goldens.jsonl")
      ->required();
  app->add_option("--out", options->out, "JSON lines are written here")->required();
  app->add_option("--dtype", options->dtype, "Numerics (default: auto; for tiny float32)")
      ->check(CLI::IsMember({"auto", "float32", "bfloat16", "float16"}));
  app->add_option("--device", options->device,
                  "gen, tiny: cpu, cuda or cuda:N (default: the first card of a build with CUDA, else the processor)");
  app->add_option("--templates", options->templates, "chat: the folder of templates (default: templates in --in)");
  return {app, [options] {
            const bool needs_model = options->kind == "gen" || options->kind == "encode" || options->kind == "stream";
            if (needs_model && options->model_path.empty()) {
              throw UsageError("--kind " + options->kind + " needs --model-path");
            }
            return run_verify(*options, std::cerr);
          }};
}

}  // namespace tokenmill::cli
