// Opens what a path names: a tokenizer alone, or a model ready to be probed.
#pragma once

#include <memory>
#include <string>

#include "checkpoint/checkpoint.h"
#include "text/tokenizer.h"
#include "verify/probe.h"

namespace tokenmill {

std::shared_ptr<const Tokenizer> open_tokenizer(const TokenizerSource& source);
// model_path: a folder (which may hold only a tokenizer), a GGUF file, or a hub id.
std::shared_ptr<const Tokenizer> open_tokenizer(const std::string& model_path);

// Loads the checkpoint onto a device; "": the engine's default.
std::unique_ptr<Probe> open_probe(const Checkpoint& checkpoint, const std::string& dtype, const std::string& device,
                                  const ProbeOptions& options);

}  // namespace tokenmill
