// cuBLAS, found when the first CUDA backend is made: a program with the CUDA backend in it starts where cuBLAS is not.
#pragma once

namespace tokenmill {

// Loads cuBLAS of the version this was built with. Looked for, in this order: the folder TOKENMILL_CUBLAS; the loader's
// own places (a copy that is loaded already is taken); the PyPI packages beside this module; CUDA_HOME, CUDA_PATH and
// /usr/local/cuda; the toolkit this was built with. Throws Error(kRuntime) that says how to get it.
void require_cublas();

}  // namespace tokenmill
