// The random numbers of sampling, the same on every backend.
#pragma once

#include <array>
#include <cstdint>

namespace tokenmill {

// Philox4x32-10 (Salmon et al., SC 2011; the Random123 library's known answers are in its test).
std::array<uint32_t, 4> philox4x32_10(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// In [0, 1), 53 bits: counter (sample_index, position, 0, 0), key = seed.
double uniform_draw(uint64_t seed, uint32_t sample_index, uint32_t position);

}  // namespace tokenmill
