// Rotary position embedding (arXiv:2104.09864), half-split pairs, fused with the per-head norms and the KV write.
#include <immintrin.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/float_mode.h"
#include "ops/cpu/kv_layout.h"
#include "ops/cpu/norm.h"
#include "ops/cpu/step_plan.h"

namespace tokenmill {
namespace {

constexpr int64_t kTokensPerPiece = 8;

// (a, b) = (a cos - b sin, b cos + a sin) for the pairs (i, i + half); each product and sum rounded to fp32.
__attribute__((target("avx2"))) void rotate(float* head, const float* cos, const float* sin, int64_t half) {
  float* const first = head;
  float* const second = head + half;
  int64_t i = 0;
  for (; i + 8 <= half; i += 8) {
    const __m256 a = _mm256_loadu_ps(first + i), b = _mm256_loadu_ps(second + i);
    const __m256 c = _mm256_loadu_ps(cos + i), s = _mm256_loadu_ps(sin + i);
    _mm256_storeu_ps(first + i, _mm256_sub_ps(_mm256_mul_ps(a, c), _mm256_mul_ps(b, s)));
    _mm256_storeu_ps(second + i, _mm256_add_ps(_mm256_mul_ps(b, c), _mm256_mul_ps(a, s)));
  }
  for (; i < half; ++i) {
    const float a = first[i], b = second[i];
    first[i] = a * cos[i] - b * sin[i];
    second[i] = b * cos[i] + a * sin[i];
  }
}

void norm_and_rotate(float* head, int64_t head_dim, const Norm* norm, const RopeTable* rope, int64_t token) {
  if (norm != nullptr) apply_norm(head, rms_scale(head, head_dim, norm->eps), norm->weight, head_dim, head);
  if (rope != nullptr) rotate(head, rope->cos.row<float>(token), rope->sin.row<float>(token), rope->cos.cols);
}

}  // namespace

void CpuBackend::rope_table(std::span<const int32_t> positions, std::span<const float> inv_freq, float factor,
                            RopeTable out) {
  const int64_t half = static_cast<int64_t>(inv_freq.size());
  TM_CHECK(out.cos.cols == half && out.sin.cols == half);
  TM_CHECK(out.cos.rows == static_cast<int64_t>(positions.size()) && out.sin.rows == out.cos.rows);
  pool_.parallel_for((out.cos.rows + kTokensPerPiece - 1) / kTokensPerPiece, [&](int64_t piece, int) {
    for (int64_t t = piece * kTokensPerPiece; t < std::min(out.cos.rows, (piece + 1) * kTokensPerPiece); ++t) {
      float* const cos = out.cos.row<float>(t);
      float* const sin = out.sin.row<float>(t);
      const float position = static_cast<float>(positions[static_cast<size_t>(t)]);
      for (int64_t i = 0; i < half; ++i) {
        // The product rounded to fp32 is the angle; from there double, so that cos and sin are rounded once.
        const double angle = position * inv_freq[static_cast<size_t>(i)];
        cos[i] = static_cast<float>(std::cos(angle)) * factor;
        sin[i] = static_cast<float>(std::sin(angle)) * factor;
      }
    }
  });
}

void CpuBackend::rope_kv_write(const RopeKvArgs& args) {
  const StepPlan& plan = *plan_;
  const std::vector<int32_t>& token_blocks = plan.group(args.kv).token_blocks;
  const KvLayout layout(args.kv);
  const int64_t head_dim = args.kv.head_dim, q_heads = args.q_heads, kv_heads = args.kv.kv_heads;
  TM_CHECK(args.qkv.rows == plan.num_tokens && args.qkv.dtype == DType::kF32);
  TM_CHECK(args.qkv.cols == (q_heads + 2 * kv_heads) * head_dim);
  TM_CHECK(static_cast<int32_t>(token_blocks.size()) == plan.num_tokens);  // the batch has a table of this group
  TM_CHECK(args.kv.page_size == 1 << plan.page_shift && args.kv.block_bytes >= layout.block_bytes());
  TM_CHECK(args.rope == nullptr || (2 * args.rope->cos.cols <= head_dim && args.rope->cos.rows == args.qkv.rows));
  pool_.parallel_for((args.qkv.rows + kTokensPerPiece - 1) / kTokensPerPiece, [&](int64_t piece, int) {
    for (int64_t t = piece * kTokensPerPiece; t < std::min(args.qkv.rows, (piece + 1) * kTokensPerPiece); ++t) {
      float* const q = args.qkv.row<float>(t);
      float* const k = q + q_heads * head_dim;
      const float* const v = k + kv_heads * head_dim;
      for (int64_t h = 0; h < q_heads; ++h) norm_and_rotate(q + h * head_dim, head_dim, args.q_norm, args.rope, t);
      const size_t token = static_cast<size_t>(t);
      std::byte* const block = args.kv.base + token_blocks[token] * args.kv.block_bytes;
      const int32_t row = plan.token_offsets[token] % layout.tile_keys;
      for (int32_t h = 0; h < kv_heads; ++h) {
        norm_and_rotate(k + h * head_dim, head_dim, args.k_norm, args.rope, t);
        std::byte* const tile = block + layout.tile_offset(h, plan.token_offsets[token]);
        write_k_row(layout, k + h * head_dim, tile, row);
        write_v_row(layout, v + h * head_dim, tile + layout.tile_bytes(), row);
      }
    }
  });
}

}  // namespace tokenmill
