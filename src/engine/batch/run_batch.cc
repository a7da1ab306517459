// Engine::run_batch over BatchRun.
#include "engine/batch/batch_run.h"
#include "engine/engine_impl.h"
#include "engine/text_repr.h"

namespace tokenmill {

BatchReport Engine::run_batch(const std::string& input, const std::string& output, const BatchOptions& options) {
  const std::shared_ptr<EngineCore> core = impl_->core;
  if (core->on_output_thread()) {
    throw Error(ErrorKind::kRuntime, "run_batch() cannot wait inside on_output.");
  }
  require_rule(options.window >= 1, "window", "at least 1", options.window);
  require_rule(options.top_logprobs_num >= 0, "top_logprobs_num", "at least 0", options.top_logprobs_num);
  options.sampling_params.validate();
  return BatchRun(*core, input, output, options).run();
}

}  // namespace tokenmill
