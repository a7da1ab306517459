// tokenmill download: a model from the hub into the shared cache; prints where it is.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>

#include "cli/command.h"
#include "cli/terminal.h"
#include "tokenmill/hub.h"

namespace tokenmill::cli {

Command add_download(CLI::App& parent) {
  CLI::App* app = parent.add_subcommand("download", "Fetch a model from the Hugging Face hub; prints its path");
  struct Options {
    std::string model, revision, download_dir;
    DownloadOptions download;
  };
  auto options = std::make_shared<Options>();
  app->add_option("model", options->model, "org/name, org/name:file.gguf or org/name:Q4_K_M")->required();
  app->add_option("--revision", options->revision, "Branch, tag or commit [main]");
  app->add_option("--download-dir", options->download_dir, "Cache folder [HF_HUB_CACHE, HF_HOME or the default]");
  app->add_option("--load-format", options->download.load_format, "auto, safetensors, gguf, dummy (no weights) [auto]")
      ->check(CLI::IsMember({"auto", "safetensors", "gguf", "dummy"}));
  app->add_flag("--tokenizer-only", options->download.tokenizer_only, "No weights");
  return {app, [options] {
            DownloadOptions& download = options->download;
            if (!options->revision.empty()) download.revision = options->revision;
            if (!options->download_dir.empty()) download.download_dir = options->download_dir;
            if (is_terminal(stderr)) download.log_level = "warning";  // the bar tells the rest
            std::printf("%s\n", download_model(options->model, download).c_str());
            return kExitOk;
          }};
}

}  // namespace tokenmill::cli
