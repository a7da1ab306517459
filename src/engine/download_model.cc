#include "base/log.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/model_path.h"
#include "tokenmill/error.h"
#include "tokenmill/hub.h"

namespace tokenmill {

std::string download_model(const std::string& model, const DownloadOptions& options) {
  const Logger logger(options.log_level, options.log_sink);
  CheckpointOptions checkpoint;
  checkpoint.load_format = options.load_format;
  checkpoint.revision = options.revision.value_or("");
  checkpoint.download_dir = options.download_dir.value_or("");
  checkpoint.tokenizer_only = options.tokenizer_only;
  checkpoint.logger = &logger;
  checkpoint.on_download = options.on_progress;
  return resolve_model_path(model, checkpoint).path;
}

}  // namespace tokenmill
