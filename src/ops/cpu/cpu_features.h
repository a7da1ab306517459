// What this processor can do, and which of it is used.
#pragma once

#include <string>
#include <string_view>

namespace tokenmill {

enum class Isa { kAvx2, kAvx512, kAmx };  // each includes those before it

struct CpuFeatures {
  bool avx2_fma_f16c = false, avx_vnni = false;
  bool avx512 = false;  // F, BW, DQ, VL
  bool avx512_vnni = false, avx512_bf16 = false;
  bool amx_int8 = false, amx_bf16 = false;  // the tile permission was asked for and granted
};

const CpuFeatures& cpu_features();
// override_name: "" (then the environment's TOKENMILL_CPU, else the best), "avx2", "avx512", "amx". Throws
// Error(kUnsupported) when the processor lacks it, naming what it has; a processor without AVX2 is too old.
Isa choose_isa(std::string_view override_name);
std::string_view name_of(Isa isa);

}  // namespace tokenmill
