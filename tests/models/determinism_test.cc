// A token's logits have the same bits however its step was put together: alone or in a batch, chunked anyhow, on copied
// prefix rows, at every page size, at 1 and 2 threads, in a pool whose free rows hold NaN. All dtypes.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>

#include "models/model_test_util.h"
#include "models/packing.h"
#include "models/quantized_checkpoint.h"

namespace tokenmill::test {
namespace {

using Rows = std::vector<std::vector<float>>;

// Logits of the first token that differs in any bit, or -1.
int64_t first_difference(const Rows& a, const Rows& b) {
  EXPECT_EQ(a.size(), b.size());
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    if (a[i].empty() || a[i].size() != b[i].size() ||
        std::memcmp(a[i].data(), b[i].data(), a[i].size() * sizeof(float)) != 0) {
      return static_cast<int64_t>(i);
    }
  }
  return -1;
}

class Determinism {
 public:
  Determinism(const Checkpoint& checkpoint, Packing packing, size_t length)
      : checkpoint_(checkpoint),
        packing_(packing),
        ids_(random_ids(7, length, checkpoint.config().vocab_size)),
        others_(random_ids(8, length, checkpoint.config().vocab_size)) {
    expected_ = all_logits(*probe(1, 32, 4096), ids_);
  }

  void run_all() {
    ASSERT_FALSE(expected_.back().empty());
    for (const float logit : expected_.back()) ASSERT_TRUE(std::isfinite(logit));
    for (const int threads : {1, 2}) {
      for (const int32_t page_size : {1, 16, 32}) {
        SCOPED_TRACE(std::to_string(threads) + " threads, page_size " + std::to_string(page_size));
        EXPECT_EQ(first_difference(all_logits(*probe(threads, page_size, 4096), ids_), expected_), -1) << "whole";
        EXPECT_EQ(first_difference(all_logits(*probe(threads, page_size, 7), ids_), expected_), -1) << "chunks of 7";
        EXPECT_EQ(first_difference(decoded(threads, page_size), expected_), -1) << "one by one";
        EXPECT_EQ(first_difference(in_a_batch(threads, page_size), expected_), -1) << "in a batch";
        EXPECT_EQ(first_difference(on_copied_prefix(threads, page_size), expected_), -1) << "on a copied prefix";
      }
    }
  }

 private:
  static constexpr int64_t kSequences = 4;

  std::unique_ptr<Probe> probe(int threads, int32_t page_size, int64_t chunk) const {
    auto probe = make_probe(checkpoint_, make_backend(BackendKind::kCpu, threads), packing_,
                            {.num_sequences = kSequences,
                             .tokens_max = static_cast<int64_t>(ids_.size()) + 1,
                             .chunk_tokens = std::min<int64_t>(chunk, 4 * static_cast<int64_t>(ids_.size())),
                             .page_size = page_size});
    // Every bit set is NaN in fp32 and bf16.
    std::memset(probe->runner().kv_memory().data(), 0xff, probe->runner().kv_memory().size());
    return probe;
  }

  Rows decoded(int threads, int32_t page_size) const {
    const auto probe = this->probe(threads, page_size, 1);
    Rows rows;
    for (const int32_t id : ids_) {
      const Probe::Next next{0, id};
      probe->decode(std::span(&next, 1),
                    [&](size_t, std::span<const float> logits) { rows.emplace_back(logits.begin(), logits.end()); });
    }
    return rows;
  }

  // Sequence 2 is ours; one other decodes, one prefills in chunks of its own, one joins late.
  Rows in_a_batch(int threads, int32_t page_size) const {
    const auto probe = this->probe(threads, page_size, static_cast<int64_t>(ids_.size()) * 4);
    const std::span<const int32_t> ids(ids_), others(others_);
    probe->feed(0, others.first(5), nullptr);
    Rows rows;
    const size_t cuts[] = {1, 2, 11, 12, 13, 30, ids.size()};
    size_t done = 0, others_done = 0;
    for (const size_t cut : cuts) {
      std::vector<Probe::Piece> pieces = {{0, others.subspan(5 + rows.size() % 7, 1)},
                                          {2, ids.subspan(done, cut - done)},
                                          {1, others.subspan(others_done, 6)}};
      if (cut > 11) pieces.insert(pieces.begin(), {3, others.subspan(3, 2)});
      const size_t before = cut > 11 ? 3 : 1;
      probe->step(pieces, [&](size_t i, std::span<const float> logits) {
        if (i >= before && i < before + cut - done) rows.emplace_back(logits.begin(), logits.end());
      });
      done = cut, others_done += 6;
    }
    return rows;
  }

  // The first 19 tokens are computed in sequence 0 and their rows copied to sequence 1, which goes on.
  Rows on_copied_prefix(int threads, int32_t page_size) const {
    constexpr size_t kShared = 19;
    const auto probe = this->probe(threads, page_size, static_cast<int64_t>(ids_.size()));
    const std::span<const int32_t> ids(ids_);
    Rows rows;
    const auto keep = [&](size_t, std::span<const float> logits) { rows.emplace_back(logits.begin(), logits.end()); };
    probe->feed(0, ids.first(kShared), keep);
    probe->feed(0, std::span(others_).first(9), nullptr);  // rows behind the copied ones hold something else
    probe->copy_prefix(0, 1, kShared);
    probe->feed(1, ids.subspan(kShared), keep);
    return rows;
  }

  const Checkpoint& checkpoint_;
  Packing packing_;
  std::vector<int32_t> ids_, others_;
  Rows expected_;
};

const std::filesystem::path kTinyFolder = std::filesystem::path(TOKENMILL_TEST_DATA) / "tiny";

class TinyDeterminism : public testing::TestWithParam<std::tuple<const char*, const char*>> {};

TEST_P(TinyDeterminism, SameBits) {
  const auto& [name, dtype] = GetParam();
  const auto checkpoint = Checkpoint::open((kTinyFolder / name).string(), {});
  Determinism(*checkpoint, choose_packing(dtype, checkpoint->config(), *make_backend(BackendKind::kCpu)), 70).run_all();
}

INSTANTIATE_TEST_SUITE_P(All, TinyDeterminism,
                         testing::Combine(testing::Values("llama-bias", "mistral-swa", "qwen3", "gemma3"),
                                          testing::Values("float32", "bfloat16")));

class QuantizedModels : public testing::TestWithParam<WeightType> {};

TEST_P(QuantizedModels, SameBits) {
  const QuantizedCheckpoint checkpoint(GetParam(), 5);
  Determinism(checkpoint, Packing::kNative, 70).run_all();
}

// Dequantised exactly, a format gives what plain loops give; with int8 activations nearly so.
TEST_P(QuantizedModels, NearNaive) {
  const QuantizedCheckpoint checkpoint(GetParam(), 6);
  const std::vector<int32_t> ids = random_ids(9, 40, checkpoint.config().vocab_size);
  const ProbeOptions options{.num_sequences = 1, .tokens_max = 40};
  const auto logits = [&](BackendKind kind, Packing packing) {
    return all_logits(*make_probe(checkpoint, make_backend(kind, 2), packing, options), ids);
  };
  // Root mean square error over all logits, relative to theirs.
  const auto error = [](const Rows& got, const Rows& want) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      for (size_t v = 0; v < want[i].size(); ++v) {
        difference += std::pow(double{got.at(i).at(v)} - want[i][v], 2);
        size += double{want[i][v]} * want[i][v];
      }
    }
    return std::sqrt(difference / size);
  };
  const Rows want = logits(BackendKind::kNaive, Packing::kFloat32);
  EXPECT_LT(error(logits(BackendKind::kCpu, Packing::kFloat32), want), 2e-5);
  EXPECT_LT(error(logits(BackendKind::kCpu, Packing::kBFloat16), want), 0.03);
  EXPECT_LT(error(logits(BackendKind::kCpu, Packing::kNative), want), 0.05);
}

INSTANTIATE_TEST_SUITE_P(All, QuantizedModels,
                         testing::Values(WeightType::kQ8_0, WeightType::kQ4_0, WeightType::kQ4_1, WeightType::kQ5_0,
                                         WeightType::kQ5_1, WeightType::kQ2K, WeightType::kQ3K, WeightType::kQ4K,
                                         WeightType::kQ5K, WeightType::kQ6K),
                         [](const auto& info) { return tokenmill::info(info.param).name; });

class RealModels : public testing::TestWithParam<const char*> {};

TEST_P(RealModels, SameBits) {
  const char* models = std::getenv("TOKENMILL_TEST_MODELS");
  if (!models) GTEST_SKIP() << "not run: TOKENMILL_TEST_MODELS is not set";
  const auto checkpoint = Checkpoint::open((std::filesystem::path(models) / GetParam()).string(), {});
  Determinism(*checkpoint, choose_packing("auto", checkpoint->config(), *make_backend(BackendKind::kCpu)), 70)
      .run_all();
}

INSTANTIATE_TEST_SUITE_P(SmolLm2, RealModels,
                         testing::Values("smollm2-135m-bf16", "gguf/SmolLM2-135M-Instruct.Q4_1.gguf"));

}  // namespace
}  // namespace tokenmill::test
