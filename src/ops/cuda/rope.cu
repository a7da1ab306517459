// Rotary position embedding, half-split pairs, fused with the per-head norms and the KV write.
#include <algorithm>

#include "base/check.h"
#include "ops/cuda/cuda_backend.h"
#include "ops/cuda/device_math.cuh"
#include "ops/cuda/kv_layout.h"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/step_plan.h"

namespace tokenmill {
namespace {

constexpr size_t kFrequenciesKept = 4;
constexpr int kRoundThreadsMax = 512;

__global__ void rope_table_kernel(const int32_t* positions, const float* inv_freq, int64_t half, float factor,
                                  float* cos_out, int64_t cos_stride, float* sin_out, int64_t sin_stride) {
  const float position = static_cast<float>(positions[blockIdx.x]);
  for (int64_t i = threadIdx.x; i < half; i += blockDim.x) {
    // The product rounded to fp32 is the angle; from there double, so that cos and sin are rounded once.
    const double angle = static_cast<double>(__fmul_rn(position, inv_freq[i]));
    cos_out[blockIdx.x * cos_stride + i] = static_cast<float>(cos(angle)) * factor;
    sin_out[blockIdx.x * sin_stride + i] = static_cast<float>(sin(angle)) * factor;
  }
}

struct RopeArgs {
  float* qkv;
  int64_t stride;
  int q_heads, kv_heads, head_dim, dims;
  const float *cos, *sin;  // null: no rotation
  int64_t cos_stride, sin_stride;
  int half;
  const float *q_norm, *k_norm;  // null: none
  float q_eps, k_eps;
  const int32_t* slots;
  std::byte* kv;
  int64_t block_bytes;
  int page_shift;
};

template <class T>
__device__ T* kv_row(const RopeArgs& args, int head, int part) {  // of the block's token
  const int32_t slot = args.slots[blockIdx.x];
  const int32_t page = 1 << args.page_shift;
  T* const block = reinterpret_cast<T*>(args.kv + (slot >> args.page_shift) * args.block_bytes);
  return block + ((int64_t{head} * 2 + part) * page + (slot & (page - 1))) * args.dims;
}

// A block a token, a warp a head at a time. A lane owns the pairs (i, i + half) it rotates and single values beyond.
template <class T>
__global__ void __launch_bounds__(256) rope_kv_write_kernel(const RopeArgs args) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  float* const heads = args.qkv + blockIdx.x * args.stride;
  let_next_start();
  wait_for_previous();
  for (int h = blockIdx.y * warps + warp; h < args.q_heads + 2 * args.kv_heads; h += warps * gridDim.y) {
    float* const head = heads + int64_t{h} * args.head_dim;
    const bool is_k = h >= args.q_heads && h < args.q_heads + args.kv_heads;
    if (h >= args.q_heads + args.kv_heads) {
      T* const out = kv_row<T>(args, h - args.q_heads - args.kv_heads, 1);
      for (int i = lane; i < args.dims; i += 32) out[i] = from_float<T>(i < args.head_dim ? head[i] : 0.0f);
      continue;
    }
    const float* const norm = is_k ? args.k_norm : args.q_norm;
    float scale = 1;
    if (norm != nullptr) {
      float squares = 0;
      for (int i = lane; i < args.head_dim; i += 32) squares += head[i] * head[i];
      scale = rsqrtf(warp_sum(squares) / static_cast<float>(args.head_dim) + (is_k ? args.k_eps : args.q_eps));
    }
    T* const out = is_k ? kv_row<T>(args, h - args.q_heads, 0) : nullptr;
    const auto put = [&](int i, float value) {
      head[i] = value;
      if (out != nullptr) out[i] = from_float<T>(value);
    };
    const auto get = [&](int i) { return norm != nullptr ? head[i] * scale * norm[i] : head[i]; };
    const int half = args.cos != nullptr ? args.half : 0;
    for (int i = lane; i < half; i += 32) {
      const float c = args.cos[blockIdx.x * args.cos_stride + i], s = args.sin[blockIdx.x * args.sin_stride + i];
      const float a = get(i), b = get(i + half);
      put(i, a * c - b * s);
      put(i + half, b * c + a * s);
    }
    for (int i = 2 * half + lane; i < args.head_dim; i += 32) put(i, get(i));
    if (out != nullptr && lane < args.dims - args.head_dim) out[args.head_dim + lane] = T{};
  }
}

// The same before attention() of 16-bit KV, where pairs are whole heads: the queries are left rounded, each head in the
// first half of its place, the keys in the cache only. A block a token, kDim / 8 lanes a head with four pairs each.
template <class T, int kDim>
__global__ void __launch_bounds__(kRoundThreadsMax) rope_round_kernel(const RopeArgs args) {
  constexpr int kLanes = kDim / 8;
  const int lane = threadIdx.x % kLanes, heads = args.q_heads + 2 * args.kv_heads;
  float* const row = args.qkv + blockIdx.x * args.stride;
  let_next_start();
  wait_for_previous();
  const float4 c = reinterpret_cast<const float4*>(args.cos + blockIdx.x * args.cos_stride)[lane];
  const float4 s = reinterpret_cast<const float4*>(args.sin + blockIdx.x * args.sin_stride)[lane];
  // Whole warps go round, for their sums.
  for (int first = threadIdx.x / 32 * 32; first < heads * kLanes; first += blockDim.x) {
    const int h = (first + threadIdx.x % 32) / kLanes;
    const bool is_there = h < heads, is_q = h < args.q_heads, is_v = h >= args.q_heads + args.kv_heads;
    float* const head = row + int64_t{h} * kDim;
    float4 a{}, b{};
    if (is_there) {
      a = reinterpret_cast<const float4*>(head)[lane];
      b = reinterpret_cast<const float4*>(head + kDim / 2)[lane];
    }
    const float* const norm = is_q ? args.q_norm : args.k_norm;
    if (args.q_norm != nullptr || args.k_norm != nullptr) {
      float squares = a.x * a.x + a.y * a.y + a.z * a.z + a.w * a.w + b.x * b.x + b.y * b.y + b.z * b.z + b.w * b.w;
#pragma unroll
      for (int offset = kLanes / 2; offset > 0; offset /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, offset);
      if (norm != nullptr && !is_v) {
        const float scale = rsqrtf(squares / kDim + (is_q ? args.q_eps : args.k_eps));
        const float4 u = reinterpret_cast<const float4*>(norm)[lane];
        const float4 w = reinterpret_cast<const float4*>(norm + kDim / 2)[lane];
        a = {a.x * scale * u.x, a.y * scale * u.y, a.z * scale * u.z, a.w * scale * u.w};
        b = {b.x * scale * w.x, b.y * scale * w.y, b.z * scale * w.z, b.w * scale * w.w};
      }
    }
    __syncwarp();  // the lanes have read what is about to be written over
    if (!is_there) continue;
    if (!is_v) {
      const float4 low = a, high = b;
      a = {low.x * c.x - high.x * s.x, low.y * c.y - high.y * s.y, low.z * c.z - high.z * s.z,
           low.w * c.w - high.w * s.w};
      b = {high.x * c.x + low.x * s.x, high.y * c.y + low.y * s.y, high.z * c.z + low.z * s.z,
           high.w * c.w + low.w * s.w};
    }
    T* const out = is_q ? reinterpret_cast<T*>(head) : kv_row<T>(args, (h - args.q_heads) % args.kv_heads, is_v);
    reinterpret_cast<uint2*>(out)[lane] = {pair_of<T>(a.x, a.y), pair_of<T>(a.z, a.w)};
    reinterpret_cast<uint2*>(out + kDim / 2)[lane] = {pair_of<T>(b.x, b.y), pair_of<T>(b.z, b.w)};
  }
}

void launch_rope_round(const RopeArgs& args, int64_t tokens, DType dtype, cudaStream_t stream, bool early) {
  const bool is_f16 = dtype == DType::kF16;
  const auto kernel = args.head_dim == 128 ? is_f16 ? rope_round_kernel<Float16, 128> : rope_round_kernel<uint16_t, 128>
                      : is_f16 ? rope_round_kernel<Float16, 64>
                                           : rope_round_kernel<uint16_t, 64>;
  const int wanted = (args.q_heads + 2 * args.kv_heads) * (args.head_dim / 8);
  const int rounds = (wanted + kRoundThreadsMax - 1) / kRoundThreadsMax;
  const int threads = ((wanted + rounds - 1) / rounds + 31) / 32 * 32;
  launch_early("rope_round", kernel, dim3(static_cast<unsigned>(tokens)), dim3(static_cast<unsigned>(threads)), 0,
               stream, early, args);
}

}  // namespace

const float* CudaBackend::device_inv_freq(std::span<const float> inv_freq) {
  for (const Frequencies& known : frequencies_) {
    if (std::ranges::equal(known.values, inv_freq)) return reinterpret_cast<const float*>(known.memory.data());
  }
  if (graphs_.recording()) throw NotRecordable("frequencies that are new");
  if (frequencies_.size() < kFrequenciesKept) frequencies_.emplace_back();
  Frequencies& entry = frequencies_[next_frequencies_++ % kFrequenciesKept];
  entry.values.clear();
  if (entry.memory.bytes() < inv_freq.size_bytes()) {
    TM_CUDA(cudaStreamSynchronize(stream()));
    entry.memory = DeviceMemory(inv_freq.size_bytes());
  }
  TM_CUDA(
      cudaMemcpyAsync(entry.memory.data(), inv_freq.data(), inv_freq.size_bytes(), cudaMemcpyHostToDevice, stream()));
  entry.values.assign(inv_freq.begin(), inv_freq.end());
  return reinterpret_cast<const float*>(entry.memory.data());
}

void CudaBackend::rope_table(std::span<const int32_t> positions, std::span<const float> inv_freq, float factor,
                             RopeTable out) {
  const int64_t half = static_cast<int64_t>(inv_freq.size());
  TM_CHECK(out.cos.cols == half && out.sin.cols == half);
  TM_CHECK(out.cos.rows == static_cast<int64_t>(positions.size()) && out.sin.rows == out.cos.rows);
  if (positions.empty() || half == 0) return;
  use_device();
  rope_table_kernel<<<static_cast<unsigned>(positions.size()), 64, 0, stream()>>>(
      device_ids(positions, ids_), device_inv_freq(inv_freq), half, factor, out.cos.row<float>(0), out.cos.stride,
      out.sin.row<float>(0), out.sin.stride);
  check_launch("rope_table");
}

bool CudaBackend::can_leave_queries(const RopeKvArgs& args) const {
  const auto is_aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  if (!args.attention_follows || args.rope == nullptr || 2 * args.rope->cos.cols != args.kv.head_dim) return false;
  const Matrix &cos = args.rope->cos, &sin = args.rope->sin;
  return has_tensor_attention(args.kv, args.q_heads) && args.qkv.stride % 4 == 0 && cos.stride % 4 == 0 &&
         cos.stride == sin.stride && is_aligned(args.qkv.data) && is_aligned(cos.data) && is_aligned(sin.data) &&
         (args.q_norm == nullptr || is_aligned(args.q_norm->weight)) &&
         (args.k_norm == nullptr || is_aligned(args.k_norm->weight)) && args.kv.block_bytes % 8 == 0;
}

void CudaBackend::rope_kv_write(const RopeKvArgs& args) {
  const StepPlan& plan = *plan_;
  const KvLayer& kv = args.kv;
  TM_CHECK(args.qkv.rows == plan.num_tokens && args.qkv.dtype == DType::kF32);
  TM_CHECK(args.qkv.cols == int64_t{args.q_heads + 2 * kv.kv_heads} * kv.head_dim);
  TM_CHECK(kv.page_size == 1 << plan.page_shift && kv.dtype != DType::kI32);
  TM_CHECK(kv.block_bytes >= cuda_kv_block_bytes(kv.kv_heads, kv.head_dim, kv.page_size, kv.dtype));
  TM_CHECK(args.rope == nullptr || (2 * args.rope->cos.cols <= kv.head_dim && args.rope->cos.rows == args.qkv.rows));
  const std::vector<int32_t>& slots = kv.group == KvGroup::kWindow ? plan.window_slots : plan.slots;
  TM_CHECK(static_cast<int32_t>(slots.size()) == plan.num_tokens);  // the batch has a table of this group
  for (const int32_t slot : slots) TM_CHECK(slot >> plan.page_shift < kv.num_blocks);
  use_device();
  const bool has_norms = args.q_norm != nullptr || args.k_norm != nullptr;
  const bool to_tensor = can_leave_queries(args);
  // For rows of one token the attention kernel can do all of this itself.
  if (to_tensor && !has_norms && plan.decode_only && !deterministic_) {
    pending_queries_ = PendingQueries{args.qkv.data, kv.base, *args.rope};
    return;
  }
  const RopeArgs kernel{.qkv = args.qkv.row<float>(0),
                        .stride = args.qkv.stride,
                        .q_heads = args.q_heads,
                        .kv_heads = kv.kv_heads,
                        .head_dim = kv.head_dim,
                        .dims = cuda_kv_dims(kv.head_dim),
                        .cos = args.rope != nullptr ? args.rope->cos.row<float>(0) : nullptr,
                        .sin = args.rope != nullptr ? args.rope->sin.row<float>(0) : nullptr,
                        .cos_stride = args.rope != nullptr ? args.rope->cos.stride : 0,
                        .sin_stride = args.rope != nullptr ? args.rope->sin.stride : 0,
                        .half = args.rope != nullptr ? static_cast<int>(args.rope->cos.cols) : 0,
                        .q_norm = args.q_norm != nullptr ? args.q_norm->weight : nullptr,
                        .k_norm = args.k_norm != nullptr ? args.k_norm->weight : nullptr,
                        .q_eps = args.q_norm != nullptr ? args.q_norm->eps : 0.0f,
                        .k_eps = args.k_norm != nullptr ? args.k_norm->eps : 0.0f,
                        .slots = plan.device_slots[static_cast<size_t>(kv.group)],
                        .kv = kv.base,
                        .block_bytes = kv.block_bytes,
                        .page_shift = plan.page_shift};
  if (to_tensor) {
    pending_queries_ = PendingQueries{args.qkv.data, kv.base, std::nullopt};
    return launch_rope_round(kernel, args.qkv.rows, kv.dtype, stream(), early_launch_);
  }
  const unsigned pieces = static_cast<unsigned>(std::max(1, (args.q_heads + 2 * kv.kv_heads + 7) / 8));
  const dim3 grid(static_cast<unsigned>(args.qkv.rows), pieces);
  const auto write = kv.dtype == DType::kF32   ? rope_kv_write_kernel<float>
                     : kv.dtype == DType::kF16 ? rope_kv_write_kernel<Float16>
                                               : rope_kv_write_kernel<uint16_t>;
  launch_early("rope_kv_write", write, grid, 256, 0, stream(), early_launch_, kernel);
}

}  // namespace tokenmill
