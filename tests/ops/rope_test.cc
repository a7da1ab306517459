// rope_table and rope_kv_write: rotation, per-head norms, and what arrives in the KV block, read back by attention.
#include <gtest/gtest.h>

#include <cmath>

#include "ops/isas.h"
#include "ops/paged_attention.h"

namespace tokenmill::reference {
namespace {

TEST(Rope, TableRoundsTheAngleToFp32) {
  const auto backend = make_cpu_backend({.num_threads = 2, .isa = ""});
  std::vector<float> inv_freq;
  for (int i = 0; i < 33; ++i) inv_freq.push_back(static_cast<float>(std::pow(10000.0, -i / 33.0)));
  std::vector<int32_t> positions = {0, 1, 2, 7, 100, 4095, 131071};
  while (positions.size() < 30) positions.push_back(static_cast<int32_t>(positions.size() * 977));
  Table cos(30, 33), sin(30, 33);
  backend->rope_table(positions, inv_freq, 1.25f, {cos.view(), sin.view()});
  for (int64_t t = 0; t < 30; ++t) {
    for (int64_t i = 0; i < 33; ++i) {
      const float angle = static_cast<float>(positions[static_cast<size_t>(t)]) * inv_freq[static_cast<size_t>(i)];
      EXPECT_NEAR(cos.at(t, i), 1.25 * std::cos(static_cast<double>(angle)), 2e-7);
      EXPECT_NEAR(sin.at(t, i), 1.25 * std::sin(static_cast<double>(angle)), 2e-7);
    }
  }
}

struct RopeCase {
  int32_t q_heads, kv_heads, head_dim, rotary_dim;
  bool norms;
};

// One token alone attends only to itself, so attention returns the value as it lies in the KV; a query against two keys
// shows the keys through the score's softmax.
TEST(Rope, RotatesNormsAndWrites) {
  std::mt19937_64 random(6);
  for (const RopeCase& c : {RopeCase{4, 2, 64, 64, false}, RopeCase{3, 1, 34, 34, true}, RopeCase{2, 2, 80, 20, true},
                            RopeCase{1, 1, 2, 2, false}, RopeCase{6, 3, 16, 0, true}, RopeCase{2, 1, 256, 128, true}}) {
    const AttentionShape shape = {.q_heads = c.q_heads,
                                  .kv_heads = c.kv_heads,
                                  .head_dim = c.head_dim,
                                  .dtype = DType::kF32,
                                  .window = 0,
                                  .softcap = 0,
                                  .scale = 0.3f};
    const auto backend = make_cpu_backend({.num_threads = 2, .isa = ""});
    const int32_t tokens = 37, page_size = 16, heads = c.q_heads + 2 * c.kv_heads;
    Table qkv(tokens, shape.qkv_cols()), q_weight(1, c.head_dim, 0), k_weight(1, c.head_dim, 0);
    fill_normal(qkv, random);
    fill_normal(q_weight, random);
    fill_normal(k_weight, random);
    std::vector<float> inv_freq;
    for (int i = 0; i < c.rotary_dim / 2; ++i) inv_freq.push_back(static_cast<float>(std::pow(0.7, i)));

    // The reference: every head of every token, normed and rotated in double.
    std::vector<std::vector<std::vector<double>>> head(static_cast<size_t>(tokens));
    for (int32_t t = 0; t < tokens; ++t) {
      for (int32_t h = 0; h < heads; ++h) {
        std::vector<double> values;
        for (int32_t d = 0; d < c.head_dim; ++d) values.push_back(qkv.at(t, int64_t{h} * c.head_dim + d));
        const bool is_q = h < c.q_heads, is_v = h >= c.q_heads + c.kv_heads;
        if (!is_v && c.norms) values = rms_norm(values, (is_q ? q_weight : k_weight).values(), 1e-5);
        std::vector<double> angles;
        for (const float frequency : inv_freq) angles.push_back(static_cast<float>(t) * frequency);
        if (!is_v) rotate(values, angles, 1.1);
        head[static_cast<size_t>(t)].push_back(values);
      }
    }

    PagedPool pool(*backend, shape, page_size, 5, 3);
    Batch batch;
    batch.tokens.assign(static_cast<size_t>(tokens), 0);
    for (int32_t t = 0; t < tokens; ++t) batch.positions.push_back(t);
    batch.rows = {
        {.sequence_id = 0, .q_len = tokens, .kv_len = tokens, .token_begin = 0, .block_begin = 0, .num_blocks = 3}};
    batch.block_tables = {4, 0, 2};
    const int64_t half = c.rotary_dim / 2;
    Table cos(tokens, half), sin(tokens, half), out(tokens, int64_t{c.q_heads} * c.head_dim);
    const RopeTable table = {cos.view(), sin.view()};
    if (half > 0) backend->rope_table(batch.positions, inv_freq, 1.1f, table);
    const Norm q_norm = {q_weight.values().data(), 1e-5f}, k_norm = {k_weight.values().data(), 1e-5f};
    backend->plan(batch, page_size);
    backend->rope_kv_write({.qkv = qkv.view(),
                            .q_heads = c.q_heads,
                            .rope = half > 0 ? &table : nullptr,
                            .q_norm = c.norms ? &q_norm : nullptr,
                            .k_norm = c.norms ? &k_norm : nullptr,
                            .kv = pool.kv()});
    for (int32_t t = 0; t < tokens; ++t) {
      for (int32_t h = 0; h < c.q_heads; ++h) {
        for (int32_t d = 0; d < c.head_dim; ++d) {
          ASSERT_NEAR(qkv.at(t, int64_t{h} * c.head_dim + d),
                      head[static_cast<size_t>(t)][static_cast<size_t>(h)][static_cast<size_t>(d)], 2e-5);
        }
      }
    }
    backend->attention({.q = qkv.view(),
                        .q_heads = c.q_heads,
                        .kv = pool.kv(),
                        .scale = shape.scale,
                        .softcap = 0,
                        .window = 0,
                        .out = out.view()});
    const int32_t group = c.q_heads / c.kv_heads;
    for (int32_t h = 0; h < c.q_heads; ++h) {
      std::vector<std::vector<double>> keys, values;
      for (int32_t t = 0; t < tokens; ++t) {
        const size_t kv_head = static_cast<size_t>(c.q_heads + h / group);
        keys.push_back(head[static_cast<size_t>(t)][kv_head]);
        values.push_back(head[static_cast<size_t>(t)][kv_head + static_cast<size_t>(c.kv_heads)]);
      }
      for (int32_t t = 0; t < tokens; ++t) {
        const auto expected = attend(head[static_cast<size_t>(t)][static_cast<size_t>(h)], keys, values, t, 0, 0.3f, 0);
        for (int32_t d = 0; d < c.head_dim; ++d) {
          ASSERT_NEAR(out.at(t, int64_t{h} * c.head_dim + d), expected[static_cast<size_t>(d)], 2e-4);
        }
      }
    }
  }
}

}  // namespace
}  // namespace tokenmill::reference
