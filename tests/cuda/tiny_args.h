// Options of engines of the tiny models.
#pragma once

#include <filesystem>
#include <string>

#include "tokenmill/server_args.h"

namespace tokenmill::testing {

inline const std::filesystem::path kTinyFolder = std::filesystem::path(TOKENMILL_TEST_DATA) / "tiny";

inline ServerArgs args_for(const std::string& model, const std::string& device, const std::string& dtype = "float32") {
  ServerArgs args;
  args.model_path = (kTinyFolder / model).string();
  args.device = device;
  args.dtype = dtype;
  args.skip_tokenizer_init = true;
  args.log_level = "error";
  args.max_total_tokens = 1 << 14;
  args.max_running_requests = 64;
  args.random_seed = 1;
  return args;
}

}  // namespace tokenmill::testing
