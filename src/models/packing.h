// How `dtype` (ServerArgs, verify) and the checkpoint decide the form weights are held in.
#pragma once

#include <string_view>

#include "checkpoint/model_config.h"
#include "ops/backend.h"

namespace tokenmill {

// dtype: "auto" (quantised checkpoints stay quantised, F32 ones fp32, F16 ones fp16 where the backend has it, all
// others bf16), "bfloat16", "float16" (or "half"), "float32" (or "float"). Throws Error(kUnsupported) for fp16 where
// the backend has none, Error(kValue) for anything else.
Packing choose_packing(std::string_view dtype, const ModelConfig& config, const Backend& backend);

// What the packing computes and keeps KV in, as log lines name it: "float32", "bfloat16", "float16".
std::string_view dtype_name(Packing packing);
constexpr DType kv_dtype(Packing packing) {
  return packing == Packing::kFloat32 ? DType::kF32 : packing == Packing::kFloat16 ? DType::kF16 : DType::kBF16;
}

}  // namespace tokenmill
