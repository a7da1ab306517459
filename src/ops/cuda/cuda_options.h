// How to make a CUDA backend; free of CUDA headers, for the registry, tests and benchmarks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "ops/backend.h"

namespace tokenmill {

struct CudaOptions {
  int device = 0;
  // Products of up to this many rows (at most 8) go through our streaming kernels, larger ones through cuBLAS.
  int gemv_rows_max = 4;
  // The same for the kernels of stream_linear.h (at most 32), which come first where they can be used.
  int stream_rows_max = 16;
  // The same for those of wide_linear.h (at most 64), which come next and by default serve deterministic inference only
  // (whatever is said here), and of split_linear.h and tens_linear.h (at most 64), after them. From tens_rows_min rows
  // on those two come before stream_linear.h's; 0: as many as suit the card.
  int wide_rows_max = 0, tens_rows_max = 64, tens_rows_min = 0;
  // Products of at least this many rows, along at least this K, go through those of many_linear.h where they can be
  // used and keep the card busy.
  int many_rows_min = 512, many_k_min = 1024;
  // Attention by the kernels of hopper_attention.h where they can be used.
  bool hopper_attention = true;
  // Of shared memory no more than this a block, as if the device had no more; 0: all that it has.
  size_t shared_bytes_max = 0;
  // Of the host, that read weights and send them; 0: as many as this process may use.
  int load_threads = 0;
  // Kernels whose results for a row never depend on the step's other rows, bit for bit.
  bool deterministic = false;
};

// 0 where there is no driver or no device.
int cuda_device_count();
// Whether the first one is new enough.
bool has_usable_cuda_device();

// Throws Error(kRuntime) when the device does not exist or cannot be used.
std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options);

// For tests. Records launched so far by a CUDA backend: a step that is run as it is would pass unseen.
int64_t count_cuda_graph_launches(const Backend& backend);

// For benchmarks. A bf16 weight of normal-like random values, made on the device; and the bytes a second at which the
// device reads a buffer of `bytes`, best of some runs. The backend must be a CUDA one.
std::unique_ptr<Weight> make_random_cuda_weight(Backend& backend, int64_t n, int64_t k, float deviation, uint64_t seed);
double measure_cuda_read_bandwidth(Backend& backend, size_t bytes);

// For benchmarks. Times on the device: every mark follows what has been launched before it. Kernels on both sides of
// one do not overlap.
class CudaMarks {
 public:
  explicit CudaMarks(Backend& backend);  // a CUDA one, which outlives this
  ~CudaMarks();
  CudaMarks(const CudaMarks&) = delete;
  CudaMarks& operator=(const CudaMarks&) = delete;
  void mark();
  // Waits for the last mark; times between neighbours. The marks are forgotten.
  std::vector<double> milliseconds();

 private:
  struct Events;
  std::unique_ptr<Events> events_;
};

}  // namespace tokenmill
