#include "ops/cpu/cpu_features.h"

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>

#include "tokenmill/error.h"

namespace tokenmill {
namespace {

constexpr int kArchReqXcompPerm = 0x1023;  // asm/prctl.h: ARCH_REQ_XCOMP_PERM
constexpr int kXfeatureXtileData = 18;

struct CpuId {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

CpuId cpuid(uint32_t leaf, uint32_t subleaf) {
  CpuId id;
  if (!__get_cpuid_count(leaf, subleaf, &id.eax, &id.ebx, &id.ecx, &id.edx)) return {};
  return id;
}

bool bit(uint32_t word, int index) { return (word >> index & 1u) != 0; }

__attribute__((target("xsave"))) uint64_t enabled_state() { return _xgetbv(0); }

CpuFeatures detect() {
  CpuFeatures features;
  const CpuId basic = cpuid(1, 0), extended = cpuid(7, 0), extended1 = cpuid(7, 1);
  const bool osxsave = bit(basic.ecx, 27);
  const uint64_t state = osxsave ? enabled_state() : 0;
  const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6, tiles = (state & 0x60000) == 0x60000;

  features.avx2_fma_f16c =
      ymm && bit(basic.ecx, 28) && bit(extended.ebx, 5) && bit(basic.ecx, 12) && bit(basic.ecx, 29);
  features.avx_vnni = ymm && bit(extended1.eax, 4);
  features.avx512 =
      zmm && bit(extended.ebx, 16) && bit(extended.ebx, 17) && bit(extended.ebx, 30) && bit(extended.ebx, 31);
  features.avx512_vnni = features.avx512 && bit(extended.ecx, 11);
  features.avx512_bf16 = features.avx512 && bit(extended1.eax, 5);
  // Linux grants the tile registers a process at a time, on request, before any thread uses them.
  const bool has_tiles = tiles && bit(extended.edx, 24);
  if (has_tiles && syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtileData) == 0) {
    features.amx_int8 = bit(extended.edx, 25);
    features.amx_bf16 = bit(extended.edx, 22);
  }
  return features;
}

bool has(const CpuFeatures& features, Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return features.avx2_fma_f16c;
    case Isa::kAvx512:
      return features.avx2_fma_f16c && features.avx512;
    case Isa::kAmx:
      return features.avx2_fma_f16c && features.avx512_vnni && features.amx_int8 && features.amx_bf16;
  }
  return false;
}

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

std::string_view name_of(Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAmx:
      return "amx";
  }
  return "?";
}

Isa choose_isa(std::string_view override_name) {
  const CpuFeatures& features = cpu_features();
  if (!features.avx2_fma_f16c) {
    throw Error(ErrorKind::kUnsupported,
                "This processor is too old: tokenmill needs AVX2, FMA and F16C (x86-64-v3, from 2013 on). If this is a "
                "virtual machine, let it pass the host's processor through.");
  }
  std::string source = "isa";
  std::string wanted(override_name);
  if (wanted.empty()) {
    const char* const environment = std::getenv("TOKENMILL_CPU");
    if (environment != nullptr) wanted = environment;
    source = "TOKENMILL_CPU";
  }
  constexpr Isa kBestFirst[] = {Isa::kAmx, Isa::kAvx512, Isa::kAvx2};
  Isa best = Isa::kAvx2;
  std::string available;
  for (const Isa isa : kBestFirst) {
    if (!has(features, isa)) continue;
    if (available.empty()) best = isa;
    available = std::string(name_of(isa)) + (available.empty() ? "" : ", ") + available;
  }
  if (wanted.empty()) return best;
  for (const Isa isa : kBestFirst) {
    if (wanted != name_of(isa)) continue;
    if (has(features, isa)) return isa;
    throw Error(ErrorKind::kUnsupported,
                source + "=" + wanted + ": this processor lacks it; it has " + available + ".");
  }
  throw Error(ErrorKind::kValue, source + " must be avx2, avx512 or amx, got " + wanted + ".");
}

}  // namespace tokenmill
