// The instruction sets a test can run here; the others are named as not run.
#pragma once

#include <iostream>
#include <string>
#include <vector>

#include "ops/backend.h"
#include "tokenmill/error.h"

namespace tokenmill::reference {

inline std::vector<std::string> runnable_isas() {
  std::vector<std::string> isas;
  for (const std::string isa : {"avx2", "avx512", "amx"}) {
    try {
      make_cpu_backend({.num_threads = 1, .isa = isa});
      isas.push_back(isa);
    } catch (const Error& error) {
      std::cout << "not run: " << error.what() << '\n';
    }
  }
  return isas;
}

}  // namespace tokenmill::reference
