// RMS norm of one row, for norm.cc and for the linear layers that fuse it into their packing.
#pragma once

#include <cstdint>

namespace tokenmill {

// 1 / sqrt(mean(row^2) + eps). Squares are summed in double in 16 chains, chain j over the elements i with i % 16 == j,
// folded by halves (j + 8, j + 4, j + 2, j + 1): the same bits on every instruction set.
float rms_scale(const float* row, int64_t n, float eps);

// out[i] = (row[i] * scale) * weight[i], each product rounded to fp32. out may be row.
void apply_norm(const float* row, float scale, const float* weight, int64_t n, float* out);

}  // namespace tokenmill
