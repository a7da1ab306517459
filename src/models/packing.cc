#include "models/packing.h"

#include <string>

#include "tokenmill/error.h"

namespace tokenmill {

Packing choose_packing(std::string_view dtype, const ModelConfig& config, const Backend& backend) {
  if (dtype == "float32" || dtype == "float") return Packing::kFloat32;
  if (dtype == "bfloat16") return Packing::kBFloat16;
  if (dtype == "auto") {
    if (config.quantized) return Packing::kNative;
    if (config.dtype == WeightType::kF32) return Packing::kFloat32;
    return config.dtype == WeightType::kF16 && backend.has_float16() ? Packing::kFloat16 : Packing::kBFloat16;
  }
  if (dtype == "float16" || dtype == "half") {
    if (backend.has_float16()) return Packing::kFloat16;
    throw Error(ErrorKind::kUnsupported, "dtype '" + std::string(dtype) + "' is not built for device '" +
                                             backend.name() + "': use 'auto', 'bfloat16' or 'float32', or a card.");
  }
  throw Error(ErrorKind::kValue,
              "dtype must be one of auto, bfloat16, float32, float, float16, half, got '" + std::string(dtype) + "'.");
}

std::string_view dtype_name(Packing packing) {
  return packing == Packing::kFloat32 ? "float32" : packing == Packing::kFloat16 ? "float16" : "bfloat16";
}

}  // namespace tokenmill
