#include "checkpoint/checkpoint.h"

#include <filesystem>
#include <new>

#include "checkpoint/gguf_checkpoint.h"
#include "checkpoint/hf_checkpoint.h"
#include "checkpoint/load_error.h"
#include "checkpoint/model_path.h"
#include "checkpoint/tensor_names.h"

namespace tokenmill {

namespace {

std::unique_ptr<Checkpoint> open_resolved(const ModelPath& model, const CheckpointOptions& options) {
  const std::string& format = options.load_format;
  if (model.is_gguf) {
    if (format != "auto" && format != "gguf") {
      fail_load(model.path, "is a GGUF file, but load_format is " + quote(format) + "; use 'auto' or 'gguf'");
    }
    return open_gguf(model.path, options);
  }
  if (format == "dummy") return open_dummy(model.path, options);
  return open_safetensors(model.path, options);
}

}  // namespace

std::unique_ptr<Checkpoint> Checkpoint::open(const std::string& path, const CheckpointOptions& options) {
  const std::string& format = options.load_format;
  if (format != "auto" && format != "safetensors" && format != "gguf" && format != "dummy") {
    fail_load("load_format", "must be one of auto, safetensors, gguf, dummy, but is " + quote(format));
  }
  try {
    return open_resolved(resolve_model_path(path, options), options);
  } catch (const std::filesystem::filesystem_error& e) {
    fail_load(path, "cannot be read (" + quote(e.what()) + ")");
  } catch (const std::bad_alloc&) {
    fail_load(path, "Not enough memory to open the checkpoint", ErrorKind::kRuntime);
  }
}

const RawTensor& Checkpoint::get(std::string_view canonical_name, const std::vector<int64_t>& shape) const {
  const RawTensor* tensor = find(canonical_name);
  if (tensor == nullptr) {
    fail_load(resolved_path_, "tensor " + quote(canonical_name) + " of shape " + shape_text(shape) + " is missing");
  }
  if (tensor->shape != shape) {
    fail_load(resolved_path_, "tensor " + quote(canonical_name) + " must have shape " + shape_text(shape) +
                                  ", but has " + shape_text(tensor->shape));
  }
  return *tensor;
}

}  // namespace tokenmill
