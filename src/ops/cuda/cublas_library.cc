#include "ops/cuda/cublas_library.h"

#include <cublasLt.h>
#include <cublas_v2.h>
#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <string>
#include <vector>

#include "tokenmill/error.h"

namespace tokenmill {
namespace {

#define TM_TEXT_OF(x) #x
#define TM_TEXT(x) TM_TEXT_OF(x)
constexpr const char* kMajor = TM_TEXT(CUBLAS_VER_MAJOR);
constexpr const char* kPackage = CUBLAS_VER_MAJOR >= 13 ? "nvidia-cublas" : "nvidia-cublas-cu12";
// tools/name_cuda_wheel.py finds the version by this name.
constexpr const char* kBlasName = "libcublas.so." TM_TEXT(CUBLAS_VER_MAJOR);
constexpr const char* kLtName = "libcublasLt.so." TM_TEXT(CUBLAS_VER_MAJOR);

struct Libraries {
  void* lt = nullptr;
  void* blas = nullptr;
};

std::vector<std::string> folders() {
  namespace fs = std::filesystem;
  std::vector<std::string> places;
  if (const char* const own = std::getenv("TOKENMILL_CUBLAS")) places.emplace_back(own);
  places.emplace_back();  // the loader's own
  Dl_info self{};
  if (dladdr(reinterpret_cast<const void*>(&require_cublas), &self) != 0 && self.dli_fname != nullptr) {
    const fs::path site = fs::path(self.dli_fname).parent_path().parent_path();  // site-packages/tokenmill/module.so
    places.push_back((site / "nvidia" / (std::string("cu") + kMajor) / "lib").string());
    places.push_back((site / "nvidia" / "cublas" / "lib").string());
  }
  for (const char* const name : {"CUDA_HOME", "CUDA_PATH"}) {
    if (const char* const root = std::getenv(name)) places.push_back((fs::path(root) / "lib64").string());
  }
  places.emplace_back("/usr/local/cuda/lib64");
#ifdef TOKENMILL_CUBLAS_FOLDER
  places.emplace_back(TOKENMILL_CUBLAS_FOLDER);
#endif
  return places;
}

Libraries open_libraries() {
  for (const std::string& folder : folders()) {
    const std::string prefix = folder.empty() ? "" : folder + "/";
    // cublasLt first: cublas needs it and may not know where it is.
    Libraries found;
    found.lt = dlopen((prefix + kLtName).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (found.lt == nullptr) continue;
    found.blas = dlopen((prefix + kBlasName).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (found.blas != nullptr) return found;
    dlclose(found.lt);
  }
  return {};
}

// Opened once and kept: closing would pull code from under other users of the library.
const Libraries& libraries() {
  static const Libraries opened = open_libraries();
  return opened;
}

template <class Function>
Function find(void* library, const char* name) {
  return library != nullptr ? reinterpret_cast<Function>(dlsym(library, name)) : nullptr;
}

}  // namespace

void require_cublas() {
  if (libraries().blas != nullptr) return;
  throw Error(ErrorKind::kRuntime,
              std::string("device='cuda' needs cuBLAS ") + kMajor + " (" + kBlasName + " and " + kLtName +
                  "), which was not found. Install the CUDA toolkit's libraries or the PyPI package " + kPackage +
                  ", or set TOKENMILL_CUBLAS to the folder that holds them.");
}

}  // namespace tokenmill

// These bear cuBLAS's names and must not be seen outside this module: PyTorch in the same process has its own.
#define TM_HIDDEN __attribute__((visibility("hidden")))

// Each of these passes its arguments on. Without the library they say so by the status that cuBLAS has for it; the
// backend has called require_cublas() long before.
#define TM_FORWARD(library, name, parameters, arguments)                                                               \
  TM_HIDDEN cublasStatus_t name parameters {                                                                           \
    static const auto function = tokenmill::find<cublasStatus_t(*) parameters>(tokenmill::libraries().library, #name); \
    return function != nullptr ? function arguments : CUBLAS_STATUS_NOT_INITIALIZED;                                   \
  }

extern "C" {

TM_FORWARD(blas, cublasCreate_v2, (cublasHandle_t * handle), (handle))
TM_FORWARD(blas, cublasDestroy_v2, (cublasHandle_t handle), (handle))
TM_FORWARD(blas, cublasSetStream_v2, (cublasHandle_t handle, cudaStream_t stream), (handle, stream))
TM_FORWARD(blas, cublasSetWorkspace_v2, (cublasHandle_t handle, void* workspace, size_t bytes),
           (handle, workspace, bytes))
TM_FORWARD(blas, cublasSetMathMode, (cublasHandle_t handle, cublasMath_t mode), (handle, mode))
TM_FORWARD(blas, cublasGemmEx,
           (cublasHandle_t handle, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k, const void* alpha,
            const void* a, cudaDataType_t a_type, int lda, const void* b, cudaDataType_t b_type, int ldb,
            const void* beta, void* c, cudaDataType_t c_type, int ldc, cublasComputeType_t compute,
            cublasGemmAlgo_t algo),
           (handle, ta, tb, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc, compute, algo))

TM_FORWARD(lt, cublasLtCreate, (cublasLtHandle_t * handle), (handle))
TM_FORWARD(lt, cublasLtDestroy, (cublasLtHandle_t handle), (handle))
TM_FORWARD(lt, cublasLtMatmul,
           (cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void* alpha, const void* a,
            cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout, const void* beta,
            const void* c, cublasLtMatrixLayout_t c_layout, void* d, cublasLtMatrixLayout_t d_layout,
            const cublasLtMatmulAlgo_t* algo, void* workspace, size_t workspace_bytes, cudaStream_t stream),
           (handle, desc, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout, algo, workspace,
            workspace_bytes, stream))
TM_FORWARD(lt, cublasLtMatmulDescCreate,
           (cublasLtMatmulDesc_t * desc, cublasComputeType_t compute, cudaDataType_t scale), (desc, compute, scale))
TM_FORWARD(lt, cublasLtMatmulDescDestroy, (cublasLtMatmulDesc_t desc), (desc))
TM_FORWARD(lt, cublasLtMatmulDescSetAttribute,
           (cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute, const void* value, size_t bytes),
           (desc, attribute, value, bytes))
TM_FORWARD(lt, cublasLtMatrixLayoutCreate,
           (cublasLtMatrixLayout_t * layout, cudaDataType type, uint64_t rows, uint64_t cols, int64_t ld),
           (layout, type, rows, cols, ld))
TM_FORWARD(lt, cublasLtMatrixLayoutDestroy, (cublasLtMatrixLayout_t layout), (layout))
TM_FORWARD(lt, cublasLtMatrixLayoutSetAttribute,
           (cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t attribute, const void* value, size_t bytes),
           (layout, attribute, value, bytes))
TM_FORWARD(lt, cublasLtMatmulPreferenceCreate, (cublasLtMatmulPreference_t * preference), (preference))
TM_FORWARD(lt, cublasLtMatmulPreferenceDestroy, (cublasLtMatmulPreference_t preference), (preference))
TM_FORWARD(lt, cublasLtMatmulPreferenceSetAttribute,
           (cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute, const void* value,
            size_t bytes),
           (preference, attribute, value, bytes))
TM_FORWARD(lt, cublasLtMatmulAlgoGetHeuristic,
           (cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
            cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t preference, int wanted,
            cublasLtMatmulHeuristicResult_t* results, int* count),
           (handle, desc, a, b, c, d, preference, wanted, results, count))

TM_HIDDEN const char* cublasGetStatusString(cublasStatus_t status) {
  static const auto function =
      tokenmill::find<const char* (*)(cublasStatus_t)>(tokenmill::libraries().blas, "cublasGetStatusString");
  return function != nullptr ? function(status) : "cuBLAS is not loaded";
}

}  // extern "C"
