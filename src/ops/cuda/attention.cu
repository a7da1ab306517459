// Paged attention for prefill and decode rows alike: online softmax over tiles of 32 keys, K and V of a tile in shared
// memory as fp32, sums in fp32. Rows with many keys are split over blocks; the last block of a unit merges its splits.
#include <algorithm>

#include "base/check.h"
#include "ops/cuda/cuda_backend.h"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/hopper_attention.h"
#include "ops/cuda/kv_layout.h"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/step_plan.h"
#include "ops/cuda/tensor_attention.h"

namespace tokenmill {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps;
constexpr int kTile = 32;  // keys: one a lane

struct AttendArgs {
  const float* q;
  float* out;
  uint16_t* out_half;  // instead of out, unless null; fp16 where out_is_f16
  bool out_is_f16;
  int64_t q_stride, out_stride;
  int group, head_dim, dims;
  const std::byte* kv;
  int64_t block_bytes;
  int page_shift;
  const PlanRow* rows;
  const int32_t* tables;
  const CudaAttentionItem* items;
  float scale, softcap;
  int window;
  float* partials;
  int num_partials;  // a KV head
  int* counters;
};

// Eight values of a KV row as floats.
template <class T>
__device__ inline void load8(const T* source, float* target) {
  const uint4 v = *reinterpret_cast<const uint4*>(source);
  const uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    target[2 * i] = low_of<T>(pairs[i]);
    target[2 * i + 1] = high_of<T>(pairs[i]);
  }
}
template <>
__device__ inline void load8<float>(const float* source, float* target) {
  *reinterpret_cast<float4*>(target) = reinterpret_cast<const float4*>(source)[0];
  *reinterpret_cast<float4*>(target + 4) = reinterpret_cast<const float4*>(source)[1];
}

__device__ inline void put(const AttendArgs& args, int64_t token, int head, int d, float value) {
  const int64_t at = token * args.out_stride + int64_t{head} * args.head_dim + d;
  if (args.out_half != nullptr) {
    args.out_half[at] = args.out_is_f16 ? from_float<Float16>(value).bits : to_bf16(value);
  } else {
    args.out[at] = value;
  }
}

// Which dimension value v of a lane is: runs of up to four neighbours, so that loads are wide.
template <int kDims>
__device__ inline int lane_dim(int lane, int v) {
  constexpr int kRun = kDims / 32 < 4 ? kDims / 32 : 4;
  return v / kRun * 32 * kRun + lane * kRun + v % kRun;
}

constexpr size_t plain_shared_bytes(int64_t dims, int64_t rows) {
  return sizeof(float) * static_cast<size_t>(kTile * (dims + 4) + kTile * dims + rows * dims + rows * kTile);
}

// A partial result: sums [kRows][kDims], then maxima [kRows], then totals [kRows].
template <int kDims, int kRows>
inline constexpr int64_t kPartialFloats = kRows * (kDims + 2);

template <int kDims, int kRows>
__device__ void merge_splits(const AttendArgs& args, const CudaAttentionItem& item, const PlanRow& row, int count,
                             const float* partials) {
  constexpr int64_t kFloats = kPartialFloats<kDims, kRows>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int r = warp; r < count; r += kWarps) {
    float peak = -INFINITY;
    for (int s = 0; s < item.num_splits; ++s) peak = fmaxf(peak, __ldcg(partials + s * kFloats + kRows * kDims + r));
    float total = 0, sums[kDims / 32] = {};
    for (int s = 0; s < item.num_splits; ++s) {
      const float* const partial = partials + s * kFloats;
      const float factor = expf(__ldcg(partial + kRows * kDims + r) - peak);  // an empty split has -inf: 0
      total += factor * __ldcg(partial + kRows * (kDims + 1) + r);
#pragma unroll
      for (int v = 0; v < kDims / 32; ++v) sums[v] += factor * __ldcg(partial + r * kDims + lane_dim<kDims>(lane, v));
    }
    const int query = (item.first + r) / args.group, head = blockIdx.y * args.group + (item.first + r) % args.group;
#pragma unroll
    for (int v = 0; v < kDims / 32; ++v) {
      const int d = lane_dim<kDims>(lane, v);
      if (d < args.head_dim) put(args, row.token_begin + query, head, d, sums[v] / total);
    }
  }
}

template <class T, int kDims, int kRowsPerWarp>
__global__ void __launch_bounds__(kThreads) attend_kernel(const AttendArgs args) {
  constexpr int kRows = kWarps * kRowsPerWarp, kValues = kDims / 32, kKeyStride = kDims + 4;
  extern __shared__ __align__(16) float shared[];
  float* const keys = shared;                       // [kTile][kKeyStride]
  float* const values = keys + kTile * kKeyStride;  // [kTile][kDims]
  float* const queries = values + kTile * kDims;    // [kRows][kDims]
  float* const weights = queries + kRows * kDims;   // [kRows][kTile]
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  let_next_start();
  wait_for_previous();
  const CudaAttentionItem item = args.items[blockIdx.x];
  if (item.num_splits == 0) return;
  const PlanRow row = args.rows[item.row];
  const int count = min(kRows, row.q_len * args.group - item.first);
  const int past = row.kv_len - row.q_len;
  const int first_position = past + item.first / args.group;
  const int end = past + (item.first + count - 1) / args.group + 1;
  // A whole tile's, so that a row meets the same tiles whichever rows it shares its block with.
  // What no row's window reaches may lie in blocks that are not held.
  const int visible_begin = args.window > 0 ? max(0, first_position - args.window + 1) : 0;
  const int begin = visible_begin / kTile * kTile;
  const int span = ((end - begin + item.num_splits - 1) / item.num_splits + kTile - 1) / kTile * kTile;
  const int keys_begin = begin + item.split * span, keys_end = min(end, keys_begin + span);

  for (int i = threadIdx.x; i < kRows * kDims; i += kThreads) {
    const int r = i / kDims, d = i % kDims;
    float value = 0;
    if (r < count && d < args.head_dim) {
      const int query = (item.first + r) / args.group, head = blockIdx.y * args.group + (item.first + r) % args.group;
      value = args.q[(row.token_begin + query) * args.q_stride + int64_t{head} * args.head_dim + d] * args.scale;
    }
    queries[i] = value;
  }

  const int warp_row = warp * kRowsPerWarp;
  float peak[kRowsPerWarp], total[kRowsPerWarp], sums[kRowsPerWarp][kValues];
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
    peak[r] = -INFINITY;
    total[r] = 0;
#pragma unroll
    for (int v = 0; v < kValues; ++v) sums[r][v] = 0;
  }
  const int page = 1 << args.page_shift;
  for (int tile = keys_begin; tile < keys_end; tile += kTile) {
    __syncthreads();
#pragma unroll
    for (int i = threadIdx.x; i < kTile * kDims / 8; i += kThreads) {
      const int key = i / (kDims / 8), d = i % (kDims / 8) * 8, position = tile + key;
      __align__(16) float k8[8] = {}, v8[8] = {};
      if (position >= visible_begin && position < keys_end && d < args.dims) {
        const int32_t block = args.tables[row.block_begin + (position >> args.page_shift)];
        const T* const source = reinterpret_cast<const T*>(args.kv + block * args.block_bytes) +
                                (int64_t{blockIdx.y} * 2 * page + (position & (page - 1))) * args.dims + d;
        load8(source, k8);
        load8(source + int64_t{page} * args.dims, v8);
      }
      float4* const k_target = reinterpret_cast<float4*>(keys + key * kKeyStride + d);
      float4* const v_target = reinterpret_cast<float4*>(values + key * kDims + d);
      k_target[0] = *reinterpret_cast<float4*>(k8);
      k_target[1] = *reinterpret_cast<float4*>(k8 + 4);
      v_target[0] = *reinterpret_cast<float4*>(v8);
      v_target[1] = *reinterpret_cast<float4*>(v8 + 4);
    }
    __syncthreads();
    if (warp_row >= count) continue;

    float score[kRowsPerWarp] = {};
#pragma unroll 4
    for (int d = 0; d < kDims; d += 4) {
      const float4 k = *reinterpret_cast<const float4*>(keys + lane * kKeyStride + d);
#pragma unroll
      for (int r = 0; r < kRowsPerWarp; ++r) {
        const float4 q = *reinterpret_cast<const float4*>(queries + (warp_row + r) * kDims + d);
        score[r] = fmaf(q.x, k.x, fmaf(q.y, k.y, fmaf(q.z, k.z, fmaf(q.w, k.w, score[r]))));
      }
    }
    const int position = tile + lane;
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      const int query_position = past + (item.first + warp_row + r) / args.group;
      const bool visible = warp_row + r < count && position < keys_end && position <= query_position &&
                           (args.window == 0 || position > query_position - args.window);
      float s = args.softcap > 0 ? args.softcap * tanhf(score[r] / args.softcap) : score[r];
      if (!visible) s = -INFINITY;
      const float new_peak = fmaxf(peak[r], warp_max(s));
      const bool any = new_peak > -INFINITY;
      const float p = any ? expf(s - new_peak) : 0.0f, factor = any ? expf(peak[r] - new_peak) : 1.0f;
      total[r] = total[r] * factor + warp_sum(p);
      peak[r] = new_peak;
#pragma unroll
      for (int v = 0; v < kValues; ++v) sums[r][v] *= factor;
      weights[(warp_row + r) * kTile + lane] = p;
    }
    __syncwarp();
#pragma unroll 2
    for (int key = 0; key < kTile; key += 4) {
      float4 p[kRowsPerWarp];
#pragma unroll
      for (int r = 0; r < kRowsPerWarp; ++r) {
        p[r] = *reinterpret_cast<const float4*>(weights + (warp_row + r) * kTile + key);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float v[kValues];
#pragma unroll
        for (int i = 0; i < kValues; ++i) v[i] = values[(key + j) * kDims + lane_dim<kDims>(lane, i)];
#pragma unroll
        for (int r = 0; r < kRowsPerWarp; ++r) {
          const float weight = j == 0 ? p[r].x : j == 1 ? p[r].y : j == 2 ? p[r].z : p[r].w;
#pragma unroll
          for (int i = 0; i < kValues; ++i) sums[r][i] = fmaf(weight, v[i], sums[r][i]);
        }
      }
    }
    __syncwarp();
  }

  constexpr int64_t kFloats = kPartialFloats<kDims, kRows>;
  float* const partials =
      args.partials + (int64_t{blockIdx.y} * args.num_partials + item.partial) * kFloats;  // of split 0
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
    if (warp_row + r >= count) continue;
    const int flat = item.first + warp_row + r;
    const int head = blockIdx.y * args.group + flat % args.group;
    float* const partial = partials + item.split * kFloats;
#pragma unroll
    for (int v = 0; v < kValues; ++v) {
      const int d = lane_dim<kDims>(lane, v);
      if (item.num_splits > 1) {
        partial[(warp_row + r) * kDims + d] = sums[r][v];
      } else if (d < args.head_dim) {
        put(args, row.token_begin + flat / args.group, head, d, sums[r][v] / total[r]);
      }
    }
    if (item.num_splits > 1 && lane == 0) {
      partial[kRows * kDims + warp_row + r] = peak[r];
      partial[kRows * (kDims + 1) + warp_row + r] = total[r];
    }
  }
  if (item.num_splits == 1) return;

  __shared__ bool is_last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    int* const counter = args.counters + item.unit * gridDim.y + blockIdx.y;
    is_last = atomicAdd(counter, 1) == item.num_splits - 1;
    if (is_last) *counter = 0;  // as the next call wants it
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  merge_splits<kDims, kRows>(args, item, row, count, partials);
}

template <class T, int kDims, int kRowsPerWarp>
void launch_attend(const AttendArgs& args, dim3 grid, cudaStream_t stream, bool early) {
  constexpr size_t kBytes = plain_shared_bytes(kDims, kWarps * kRowsPerWarp);
  const auto kernel = attend_kernel<T, kDims, kRowsPerWarp>;
  if (kBytes > size_t{48} << 10) {
    TM_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kBytes)));
  }
  launch_early("attention", kernel, grid, kThreads, kBytes, stream, early, args);
}

template <class T, int kRowsPerWarp>
void launch_attend(const AttendArgs& args, dim3 grid, cudaStream_t stream, bool early) {
  if (args.head_dim <= 64) return launch_attend<T, 64, kRowsPerWarp>(args, grid, stream, early);
  if (args.head_dim <= 128) return launch_attend<T, 128, kRowsPerWarp>(args, grid, stream, early);
  launch_attend<T, 256, kRowsPerWarp>(args, grid, stream, early);
}

}  // namespace

bool CudaBackend::has_tensor_attention(const KvLayer& kv, int32_t q_heads) const {
  // One kernel for all numbers of new tokens, if bits must not depend on it.
  return tensor_attention_supports(kv, q_heads / kv.kv_heads) && (!deterministic_ || has_hopper_attention(kv));
}

bool CudaBackend::has_hopper_attention(const KvLayer& kv) const {
  return hopper_attention_ && early_launch_ && hopper_attention_supports(kv);
}

bool CudaBackend::attend_by_tensor_cores(const AttentionArgs& args) {
  const KvLayer& kv = args.kv;
  // Queries are read by 16 bytes.
  if (args.out.dtype != DType::kF32 && args.out.dtype != kv.dtype) return false;
  if (!has_tensor_attention(kv, args.q_heads) || args.q.stride % 4 != 0 || args.out.stride % 4 != 0) return false;
  if (reinterpret_cast<uintptr_t>(args.q.data) % 16 != 0 || reinterpret_cast<uintptr_t>(args.out.data) % 16 != 0) {
    return false;
  }
  StepPlan& plan = *plan_;
  const CudaAttentionSchedule& schedule =
      plan.schedule(args.q_heads / kv.kv_heads, kv.kv_heads, true, 0, num_sms_, stream());
  const size_t partial = static_cast<size_t>(tensor_partial_floats(kv.head_dim));
  const size_t heads = static_cast<size_t>(kv.kv_heads);
  TensorAttentionArgs kernel{
      .q = args.q.row<float>(0),
      .q_half = nullptr,
      .q_stride = args.q.stride,
      .out = args.out.dtype == DType::kF32 ? args.out.row<float>(0) : nullptr,
      .out_half = args.out.dtype != DType::kF32 ? args.out.row<uint16_t>(0) : nullptr,
      .out_stride = args.out.stride,
      .dtype = kv.dtype,
      .group = schedule.group,
      .q_heads = args.q_heads,
      .kv_heads = kv.kv_heads,
      .head_dim = kv.head_dim,
      .kv = kv.base,
      .block_bytes = kv.block_bytes,
      .page_shift = plan.page_shift,
      .rows = plan.device_rows[static_cast<size_t>(kv.group)],
      .tables = plan.device_tables,
      .items = schedule.device_items,
      .scale = args.scale,
      .softcap = args.softcap,
      .window = args.window,
      .partials = partials_.get<float>(partial * static_cast<size_t>(schedule.num_partials) * heads, stream()),
      .num_partials = schedule.num_partials,
      .counters = counters_.get<int>(static_cast<size_t>(schedule.num_units) * heads, stream()),
      .stages = schedule.stages,
      .rows_max = schedule.few_rows_max,
      .two_tiles = schedule.two_tiles,
      .cos = nullptr,
      .sin = nullptr,
      .rope_stride = 0};
  if (pending_queries_) {
    TM_CHECK(pending_queries_->qkv == args.q.data && pending_queries_->kv == kv.base);
    if (pending_queries_->rotate_by) {
      const RopeTable& table = *pending_queries_->rotate_by;
      kernel.cos = table.cos.row<float>(0);
      kernel.sin = table.sin.row<float>(0);
      kernel.rope_stride = table.cos.stride;
    } else {
      kernel.q_half = args.q.row<uint16_t>(0);
    }
    pending_queries_.reset();
  }
  launch_tensor_attention(kernel, schedule, kv);
  return true;
}

void CudaBackend::launch_tensor_attention(TensorAttentionArgs& kernel, const CudaAttentionSchedule& schedule,
                                          const KvLayer& kv) {
  // Two of them on devices with 99 KiB.
  const auto stages_that_fit = [&](int rows) {
    constexpr int kFixed = 2048;  // of the kernels themselves
    const int left = static_cast<int>(shared_bytes_max_) - kFixed - rows * kv.head_dim * 2;
    return left / tensor_stage_bytes(kv.head_dim);
  };
  const bool is_hopper = has_hopper_attention(kv);
  if (const auto count = static_cast<int>(schedule.items.size()); count > 0) {
    if (is_hopper) {
      launch_hopper_few_row_attention(kernel, kv.num_blocks, count, stream());
    } else {
      kernel.stages = std::min(kernel.stages, stages_that_fit(kTensorFewRows));
      launch_few_row_attention(kernel, count, stream(), early_launch_);
    }
  }
  if (const auto count = static_cast<int>(schedule.many_items.size()); count > 0) {
    kernel.items = schedule.device_many_items;
    if (is_hopper) {
      launch_hopper_attention(kernel, kv.num_blocks, count, schedule.many_keys, num_sms_,
                              unit_counters_.get<int>(2, stream()), stream());
    } else {
      kernel.stages = std::min(kTensorAttentionStagesMax, stages_that_fit(kTensorManyRows));
      launch_many_row_attention(kernel, count, stream(), early_launch_);
    }
  }
}

void CudaBackend::attention(const AttentionArgs& args) {
  StepPlan& plan = *plan_;
  const KvLayer& kv = args.kv;
  TM_CHECK(kv.dtype != DType::kI32);
  TM_CHECK(kv.head_dim % 2 == 0 && kv.head_dim >= 2 && kv.head_dim <= 256);
  TM_CHECK(kv.kv_heads >= 1 && args.q_heads >= 1 && args.q_heads % kv.kv_heads == 0);
  TM_CHECK(kv.page_size == 1 << plan.page_shift);
  TM_CHECK(kv.block_bytes >= cuda_kv_block_bytes(kv.kv_heads, kv.head_dim, kv.page_size, kv.dtype));
  TM_CHECK(args.q.rows == plan.num_tokens && args.q.cols >= int64_t{args.q_heads} * kv.head_dim);
  TM_CHECK(args.out.rows == plan.num_tokens && args.out.cols >= int64_t{args.q_heads} * kv.head_dim);
  use_device();
  if (attend_by_tensor_cores(args)) return;
  TM_CHECK(!pending_queries_);
  const int64_t dims_max = kv.head_dim <= 64 ? 64 : kv.head_dim <= 128 ? 128 : 256;
  // Of 256 dimensions, devices with 99 KiB have no room for many rows.
  const bool has_room = plain_shared_bytes(dims_max, kPlainManyRows) <= shared_bytes_max_;
  const CudaAttentionSchedule& schedule = plan.schedule(args.q_heads / kv.kv_heads, kv.kv_heads, false,
                                                        has_room ? kPlainManyRows : kPlainFewRows, num_sms_, stream());
  const int64_t partial = schedule.rows_per_block * (dims_max + 2);
  const AttendArgs kernel{
      .q = args.q.row<float>(0),
      .out = args.out.dtype == DType::kF32 ? args.out.row<float>(0) : nullptr,
      .out_half = args.out.dtype != DType::kF32 ? args.out.row<uint16_t>(0) : nullptr,
      .out_is_f16 = args.out.dtype == DType::kF16,
      .q_stride = args.q.stride,
      .out_stride = args.out.stride,
      .group = schedule.group,
      .head_dim = kv.head_dim,
      .dims = cuda_kv_dims(kv.head_dim),
      .kv = kv.base,
      .block_bytes = kv.block_bytes,
      .page_shift = plan.page_shift,
      .rows = plan.device_rows[static_cast<size_t>(kv.group)],
      .tables = plan.device_tables,
      .items = schedule.device_items,
      .scale = args.scale,
      .softcap = args.softcap,
      .window = args.window,
      .partials = partials_.get<float>(static_cast<size_t>(partial * schedule.num_partials * kv.kv_heads), stream()),
      .num_partials = schedule.num_partials,
      .counters =
          counters_.get<int>(static_cast<size_t>(schedule.num_units) * static_cast<size_t>(kv.kv_heads), stream())};
  const dim3 grid(static_cast<unsigned>(schedule.items.size()), static_cast<unsigned>(kv.kv_heads));
  constexpr int kFew = kPlainFewRows / kWarps, kMany = kPlainManyRows / kWarps;
  const bool few = schedule.rows_per_block == kPlainFewRows;
  const auto launch = kv.dtype == DType::kF32   ? few ? launch_attend<float, kFew> : launch_attend<float, kMany>
                        : kv.dtype == DType::kF16 ? few ? launch_attend<Float16, kFew> : launch_attend<Float16, kMany>
                        : few ? launch_attend<uint16_t, kFew>
                                                : launch_attend<uint16_t, kMany>;
  launch(kernel, grid, stream(), early_launch_);
}

}  // namespace tokenmill
