#include "models/packing.h"

#include <string>

#include "tokenmill/error.h"

namespace tokenmill {

Packing choose_packing(std::string_view dtype, const ModelConfig& config) {
  if (dtype == "float32" || dtype == "float") return Packing::kFloat32;
  if (dtype == "bfloat16") return Packing::kBFloat16;
  if (dtype == "auto") {
    if (config.quantized) return Packing::kNative;
    return config.dtype == WeightType::kF32 ? Packing::kFloat32 : Packing::kBFloat16;
  }
  if (dtype == "float16" || dtype == "half") {
    throw Error(ErrorKind::kUnsupported,
                "dtype '" + std::string(dtype) + "' is not supported on the CPU; use bfloat16 or float32.");
  }
  throw Error(ErrorKind::kValue,
              "dtype must be one of auto, bfloat16, float32, float, float16, half, got '" + std::string(dtype) + "'.");
}

std::string_view dtype_name(Packing packing) { return packing == Packing::kFloat32 ? "float32" : "bfloat16"; }

}  // namespace tokenmill
