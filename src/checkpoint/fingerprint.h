// Which model this is, by its files: what a saved prefix is keyed by.
#pragma once

#include <string>

#include "checkpoint/checkpoint.h"

namespace tokenmill {

// SHA-256 (hexadecimal) of a model's configuration, of the names, sizes and first 64 KiB of its weight files, of 64
// samples of 4 KiB spread over each, and of the overrides in `options`. Reads some 0.3 MB a file, not the whole model:
// two models of one shape that differ in a few scattered weights only may look the same.
// Throws Error as resolve_model_path() does.
std::string model_fingerprint(const std::string& path, const CheckpointOptions& options);

}  // namespace tokenmill
