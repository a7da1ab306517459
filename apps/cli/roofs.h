// What this machine can do at most, measured now: the yardsticks of `tokenmill bench`.
//
// Ratios of figures from one run mean something; absolute figures of a shared machine on another day do not.
#pragma once

#include <optional>

namespace tokenmill::cli {

struct Roofs {
  double read_bytes_per_s = 0;           // streaming reads from memory, all threads
  double fma_flops = 0;                  // fp32 multiply-adds, two operations each
  std::optional<double> bf16_dot_flops;  // AVX512_BF16
  std::optional<double> int8_dot_ops;    // AVX-512 VNNI
  std::optional<double> amx_bf16_flops, amx_int8_ops;
};

// About two seconds; 256 MiB a thread while it runs.
Roofs measure_roofs(int num_threads);

}  // namespace tokenmill::cli
