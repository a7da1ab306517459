#include "ops/cpu/cpu_backend.h"

#include <algorithm>
#include <utility>

#include "base/machine.h"
#include "base/page_memory.h"
#include "ops/cpu/float_mode.h"
#include "ops/cpu/step_plan.h"
#include "tokenmill/error.h"

namespace tokenmill {
namespace {

constexpr int kThreadsMax = 1024;

int resolve_threads(int num_threads) {
  if (num_threads == 0) return std::min(usable_cpus(), kThreadsMax);
  if (num_threads < 0 || num_threads > kThreadsMax) {
    throw Error(ErrorKind::kValue, "num_threads must be in [1, " + std::to_string(kThreadsMax) + "], got " +
                                       std::to_string(num_threads) + ".");
  }
  return num_threads;
}

}  // namespace

std::byte* ScratchBuffer::get(size_t bytes) {
  if (bytes <= memory_.size()) return memory_.data();
  // Grow by at least half, so that slowly growing wishes allocate a logarithmic number of times.
  const size_t wanted = std::max(bytes, memory_.size() + memory_.size() / 2);
  memory_ = PageMemory();  // the old one goes first
  memory_ = PageMemory(wanted, /*huge_pages=*/false);
  return memory_.data();
}

CpuBackend::CpuBackend(const CpuOptions& options)
    : isa_(choose_isa(options.isa)),
      pool_(resolve_threads(options.num_threads), &set_float_mode),
      worker_scratch_(static_cast<size_t>(pool_.num_threads())),
      plan_(std::make_unique<StepPlan>()) {}

CpuBackend::~CpuBackend() = default;

std::string CpuBackend::description() const {
  const CpuFeatures& features = cpu_features();
  std::string extras;
  const auto add = [&extras](bool present, const char* name) {
    if (present) extras += (extras.empty() ? " (" : ", ") + std::string(name);
  };
  if (isa_ == Isa::kAvx2) {
    add(features.avx_vnni, "vnni");
  } else {
    add(features.avx512_vnni, "vnni");
    add(features.avx512_bf16, "bf16");
  }
  if (isa_ == Isa::kAmx) {
    add(features.amx_int8, "amx-int8");
    add(features.amx_bf16, "amx-bf16");
  }
  if (!extras.empty()) extras += ")";
  const int threads = num_threads();
  return std::string(name_of(isa_)) + extras + ", " + std::to_string(threads) + (threads == 1 ? " thread" : " threads");
}

std::unique_ptr<Backend> make_cpu_backend(const CpuOptions& options) { return std::make_unique<CpuBackend>(options); }

}  // namespace tokenmill
