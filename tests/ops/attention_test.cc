// attention and rope_kv_write against a naive reference, and bit for bit against themselves: the same rows come out at
// every page_size, chunking, batch, number of threads and instruction set, over a pool that holds NaN wherever nothing
// was written.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <ostream>

#include "ops/isas.h"
#include "ops/paged_attention.h"

namespace tokenmill::reference {

void PrintTo(const AttentionShape& shape, std::ostream* out) {
  *out << "q_heads " << shape.q_heads << " kv_heads " << shape.kv_heads << " head_dim " << shape.head_dim << " dtype "
       << (shape.dtype == DType::kF32 ? "f32" : "bf16") << " window " << shape.window << " softcap " << shape.softcap;
}

namespace {

bool same_bits(const Table& a, const Table& b) {
  return a.values().size() == b.values().size() &&
         std::memcmp(a.values().data(), b.values().data(), a.values().size() * sizeof(float)) == 0;
}

std::vector<Table> random_sequences(const AttentionShape& shape, const std::vector<int32_t>& lengths, uint64_t seed) {
  std::vector<Table> tables;
  std::mt19937_64 random(seed);
  for (const int32_t length : lengths) {
    tables.emplace_back(length, shape.qkv_cols());
    fill_normal(tables.back(), random, 1.5);
  }
  return tables;
}

int32_t blocks_for(const std::vector<Table>& sequences, int32_t page_size) {
  int64_t blocks = 3;  // some stay free, and NaN
  for (const Table& table : sequences) blocks += (table.rows() + page_size - 1) / page_size;
  return static_cast<int32_t>(blocks);
}

// Every sequence alone, its whole length in one step: what all other ways must equal.
std::vector<Table> run_alone(Backend& backend, const AttentionShape& shape, const std::vector<Table>& sequences,
                             int32_t page_size) {
  PagedPool pool(backend, shape, page_size, blocks_for(sequences, page_size), 1);
  std::vector<Step> steps;
  for (size_t s = 0; s < sequences.size(); ++s) steps.push_back({{s, static_cast<int32_t>(sequences[s].rows())}});
  return pool.run(sequences, steps);
}

// Sequences start at different steps, in random chunks, decodes beside prefills.
std::vector<Table> run_mixed(Backend& backend, const AttentionShape& shape, const std::vector<Table>& sequences,
                             int32_t page_size, uint64_t seed, bool frees_behind_window = false) {
  std::mt19937_64 random(seed);
  std::vector<Step> steps;
  for (size_t s = 0; s < sequences.size(); ++s) {
    const int32_t length = static_cast<int32_t>(sequences[s].rows());
    const int32_t chunk_max = std::uniform_int_distribution<int32_t>(0, 2)(random) == 0 ? length : 70;
    const int32_t decodes = std::min(length - 1, 9);
    std::vector<int32_t> chunks = random_chunks(length - decodes, chunk_max, random);
    chunks.insert(chunks.end(), static_cast<size_t>(decodes), 1);
    size_t step = std::uniform_int_distribution<size_t>(0, 3)(random);
    for (const int32_t chunk : chunks) {
      if (steps.size() <= step) steps.resize(step + 1);
      steps[step++].push_back({s, chunk});
    }
  }
  std::erase_if(steps, [](const Step& step) { return step.empty(); });
  PagedPool pool(backend, shape, page_size, blocks_for(sequences, page_size), seed);
  if (frees_behind_window) pool.free_behind_window();
  return pool.run(sequences, steps);
}

double rounded(float value, DType dtype) { return dtype == DType::kF32 ? value : bf16_to_f32(f32_to_bf16(value)); }

void expect_close_to_reference(const AttentionShape& shape, const Table& qkv, const Table& out) {
  const int32_t length = static_cast<int32_t>(qkv.rows()), head_dim = shape.head_dim;
  const int32_t group = shape.q_heads / shape.kv_heads;
  // Probabilities are rounded to bf16 beside bf16 values: 2^-9 of the greatest value.
  const double tolerance = shape.dtype == DType::kF32 ? 3e-5 : 2e-2;
  const auto head_of = [&](int64_t position, int64_t column) {
    std::vector<double> head(static_cast<size_t>(head_dim));
    for (int32_t d = 0; d < head_dim; ++d) {
      head[static_cast<size_t>(d)] = rounded(qkv.at(position, column * head_dim + d), shape.dtype);
    }
    return head;
  };
  for (int32_t kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
    std::vector<std::vector<double>> keys, values;
    for (int32_t j = 0; j < length; ++j) {
      keys.push_back(head_of(j, shape.q_heads + kv_head));
      values.push_back(head_of(j, shape.q_heads + shape.kv_heads + kv_head));
    }
    for (int32_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
      for (int32_t position = 0; position < length; position += 1 + position / 16) {
        const auto expected =
            attend(head_of(position, h), keys, values, position, shape.window, shape.scale, shape.softcap);
        for (int32_t d = 0; d < head_dim; ++d) {
          ASSERT_NEAR(out.at(position, int64_t{h} * head_dim + d), expected[static_cast<size_t>(d)], tolerance)
              << "position " << position << " head " << h << " dim " << d;
        }
      }
    }
  }
}

class Attention : public testing::TestWithParam<AttentionShape> {};

TEST_P(Attention, SameBitsEverywhereAndCloseToReference) {
  const AttentionShape shape = GetParam();
  const std::vector<Table> sequences = random_sequences(shape, {1, 33, 150, 64, 7}, 11);
  const auto base = make_cpu_backend({.num_threads = 1, .isa = "avx2"});
  const std::vector<Table> expected = run_alone(*base, shape, sequences, 32);
  for (size_t s = 0; s < sequences.size(); ++s) expect_close_to_reference(shape, sequences[s], expected[s]);
  for (const std::string& isa : runnable_isas()) {
    for (const int threads : {1, 2, 3}) {
      const auto backend = make_cpu_backend({.num_threads = threads, .isa = isa});
      for (const int32_t page_size : {1, 2, 16, 32, 64}) {
        const auto alone = run_alone(*backend, shape, sequences, page_size);
        const auto mixed = run_mixed(*backend, shape, sequences, page_size, static_cast<uint64_t>(threads + page_size));
        for (size_t s = 0; s < sequences.size(); ++s) {
          EXPECT_TRUE(same_bits(alone[s], expected[s])) << isa << " threads " << threads << " page " << page_size;
          EXPECT_TRUE(same_bits(mixed[s], expected[s])) << isa << " threads " << threads << " page " << page_size;
        }
      }
    }
  }
}

// A window layer in a pool of its own, which gives up and spoils all that lies behind the window.
TEST_P(Attention, BlocksBehindTheWindowAreNotRead) {
  AttentionShape shape = GetParam();
  if (shape.window == 0) shape.window = 37;
  const std::vector<Table> sequences = random_sequences(shape, {700, 33, 150, 64, 7}, 13);
  const auto base = make_cpu_backend({.num_threads = 1, .isa = "avx2"});
  const std::vector<Table> expected = run_alone(*base, shape, sequences, 32);
  for (const std::string& isa : runnable_isas()) {
    for (const int threads : {1, 3}) {
      const auto backend = make_cpu_backend({.num_threads = threads, .isa = isa});
      for (const int32_t page_size : {1, 16, 32, 64}) {
        const auto mixed =
            run_mixed(*backend, shape, sequences, page_size, static_cast<uint64_t>(5 * threads), /*frees=*/true);
        for (size_t s = 0; s < sequences.size(); ++s) {
          EXPECT_TRUE(same_bits(mixed[s], expected[s])) << isa << " threads " << threads << " page " << page_size;
        }
      }
    }
  }
}

// More than one piece of 512 keys: split over threads, merged in order.
TEST_P(Attention, LongContextsInPieces) {
  AttentionShape shape = GetParam();
  if (shape.window > 0) shape.window *= 20;
  const std::vector<Table> sequences = random_sequences(shape, {1300, 40, 513}, 12);
  const auto base = make_cpu_backend({.num_threads = 1, .isa = "avx2"});
  const std::vector<Table> expected = run_alone(*base, shape, sequences, 32);
  expect_close_to_reference(shape, sequences[0], expected[0]);
  for (const std::string& isa : runnable_isas()) {
    for (const int threads : {1, 3}) {
      const auto backend = make_cpu_backend({.num_threads = threads, .isa = isa});
      for (const int32_t page_size : {1, 16, 32}) {
        const auto mixed = run_mixed(*backend, shape, sequences, page_size, static_cast<uint64_t>(7 * threads));
        for (size_t s = 0; s < sequences.size(); ++s) {
          EXPECT_TRUE(same_bits(mixed[s], expected[s])) << isa << " threads " << threads << " page " << page_size;
        }
      }
    }
  }
}

std::vector<AttentionShape> shapes() {
  std::vector<AttentionShape> list = {
      {.q_heads = 9, .kv_heads = 3, .head_dim = 64},
      {.q_heads = 4, .kv_heads = 1, .head_dim = 256, .window = 24, .scale = 0.0625f},
      {.q_heads = 3, .kv_heads = 3, .head_dim = 2, .dtype = DType::kF32, .scale = 0.7f},
      {.q_heads = 2, .kv_heads = 2, .head_dim = 34, .dtype = DType::kF32, .window = 33, .softcap = 5},
  };
  std::mt19937_64 random(2026);
  const auto pick = [&](int32_t low, int32_t high) {
    return std::uniform_int_distribution<int32_t>(low, high)(random);
  };
  for (int i = 0; i < 8; ++i) {
    AttentionShape shape;
    shape.kv_heads = pick(1, 3);
    shape.q_heads = shape.kv_heads * pick(1, 7);
    shape.head_dim = 2 * pick(1, 80);
    shape.dtype = i % 2 == 0 ? DType::kBF16 : DType::kF32;
    shape.window = pick(0, 1) == 1 ? pick(1, 100) : 0;
    shape.softcap = pick(0, 2) == 0 ? 20.0f : 0.0f;
    shape.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(shape.head_dim)));
    list.push_back(shape);
  }
  return list;
}
INSTANTIATE_TEST_SUITE_P(Shapes, Attention, testing::ValuesIn(shapes()));

}  // namespace
}  // namespace tokenmill::reference
