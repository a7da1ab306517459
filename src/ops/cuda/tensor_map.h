// Descriptions of bf16 matrices for the copies of hopper.cuh, and whether kernels that need them are there.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "ops/cuda/per_device.h"

namespace tokenmill {

// Boxes of [box_rows][pieces][64] of a matrix [rows, cols]: `pieces` neighbouring runs of 64 columns of each row, with
// 128-byte swizzling. cols is a multiple of 64, stride (elements) of 8, data 16-byte aligned.
CUtensorMap pieces_map(const void* data, int64_t rows, int64_t cols, int64_t stride, int box_rows, int pieces);
// The same as [pieces][box_rows][64].
CUtensorMap columns_map(const void* data, int64_t rows, int64_t cols, int64_t stride, int box_rows, int pieces);
// Boxes of [box_rows / 8][pieces][8][64] of a matrix whose rows lie side by side; rows and box_rows are multiples of 8.
CUtensorMap row_groups_map(const void* data, int64_t rows, int64_t cols, int box_rows, int pieces);

// Whether the code that runs on the current device was built with the kernel's body, which is left out for devices that
// lack its instructions. Told by its fixed shared memory; `known` is the kernel's own.
bool has_body(const void* kernel, PerDevice& known);

}  // namespace tokenmill
