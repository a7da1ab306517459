// Dequantisation against the `gguf` package's, and what packing checks and reports.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "ops/backend.h"
#include "ops/dequantize.h"
#include "ops/linear_testing.h"
#include "tokenmill/error.h"

namespace tokenmill {
namespace {

using testing_linear::all_types;
using testing_linear::random_tensor;

std::vector<std::byte> from_hex(const std::string& hex) {
  std::vector<std::byte> bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes.push_back(static_cast<std::byte>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

TEST(Dequantize, GivesTheBitsOfTheGgufPackage) {
  std::ifstream file(std::string(TOKENMILL_TEST_DATA) + "/ops/dequantize.txt");
  ASSERT_TRUE(file.is_open());
  std::set<std::string> seen;
  std::string line;
  while (std::getline(file, line)) {
    if (line.empty() || line[0] == '#') continue;
    std::istringstream fields(line);
    std::string name, block_hex, values_hex;
    fields >> name >> block_hex >> values_hex;
    for (const WeightType type : all_types()) {
      if (name != info(type).name) continue;
      seen.insert(name);
      const std::vector<std::byte> blocks = from_hex(block_hex), expected = from_hex(values_hex);
      const size_t count = expected.size() / sizeof(float);
      ASSERT_EQ(blocks.size() * static_cast<size_t>(info(type).block_values),
                count * static_cast<size_t>(info(type).block_bytes));
      std::vector<float> values(count);
      dequantize_row(type, blocks.data(), static_cast<int64_t>(count), values.data());
      for (size_t i = 0; i < count; ++i) {
        float wanted;
        std::memcpy(&wanted, expected.data() + i * sizeof(float), sizeof wanted);
        ASSERT_EQ(values[i], wanted) << name << " value " << i;
      }
    }
  }
  EXPECT_EQ(seen.size(), all_types().size());
}

std::string pack_error(const RawTensor& tensor, Packing packing, std::span<const float> bias = {}) {
  const auto backend = make_cpu_backend({2, ""});
  const RawTensor* const part = &tensor;
  try {
    backend->pack({&part, 1}, bias, packing);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kValue);
    return error.what();
  }
  return "";
}

TEST(Pack, NamesTheTensorAndRowThatHoldsNan) {
  std::mt19937 random(3);
  // Where a block's fp16 scales are, as in random tensors.
  const std::vector<std::pair<WeightType, int>> places = {
      {WeightType::kF16, 0},   {WeightType::kBF16, 0}, {WeightType::kQ8_0, 0}, {WeightType::kQ4_0, 0},
      {WeightType::kQ4_1, 2},  {WeightType::kQ5_0, 0}, {WeightType::kQ5_1, 2}, {WeightType::kQ2K, 82},
      {WeightType::kQ3K, 108}, {WeightType::kQ4K, 2},  {WeightType::kQ5K, 0},  {WeightType::kQ6K, 208}};
  for (const auto& [type, offset] : places) {
    for (const Packing packing : {Packing::kFloat32, Packing::kBFloat16, Packing::kNative}) {
      const auto tensor = random_tensor(type, 40, 512, random, "layers.7.self_attn.q_proj.weight");
      EXPECT_EQ(pack_error(*tensor, packing), "");
      for (const uint16_t bad : {0x7fc1, 0xff80}) {  // NaN in both halves' formats; infinity in bf16, NaN in fp16
        auto bytes = *tensor->owned;
        const size_t at = 23 * tensor->row_bytes() + static_cast<size_t>(info(type).block_bytes + offset);
        std::memcpy(bytes.data() + at, &bad, sizeof bad);
        RawTensor damaged = *tensor;
        damaged.data = bytes.data();
        const std::string message = pack_error(damaged, packing);
        EXPECT_NE(message.find("layers.7.self_attn.q_proj.weight"), std::string::npos) << info(type).name << message;
        EXPECT_NE(message.find("row 23"), std::string::npos) << info(type).name << message;
      }
    }
  }
}

TEST(Pack, RejectsWhatOverflowsInRounding) {
  std::mt19937 random(4);
  const auto tensor = random_tensor(WeightType::kF32, 3, 8, random);
  auto bytes = *tensor->owned;
  const float largest = std::numeric_limits<float>::max();
  std::memcpy(bytes.data() + 4, &largest, sizeof largest);
  RawTensor damaged = *tensor;
  damaged.data = bytes.data();
  EXPECT_EQ(pack_error(damaged, Packing::kFloat32), "");
  EXPECT_NE(pack_error(damaged, Packing::kBFloat16).find("row 0"), std::string::npos);
}

TEST(Pack, RejectsColumnsThatAreNoWholeBlocksAndBadBiases) {
  std::mt19937 random(5);
  auto tensor = random_tensor(WeightType::kQ4K, 4, 512, random);
  tensor->shape = {4, 300};
  EXPECT_NE(pack_error(*tensor, Packing::kNative).find("no multiple of the 256"), std::string::npos);
  const auto good = random_tensor(WeightType::kF32, 2, 8, random);
  const float bias[] = {1.0f, std::nanf("")};
  EXPECT_NE(pack_error(*good, Packing::kNative, bias).find("bias"), std::string::npos);
}

TEST(Pack, BytesAreThoseOfTheLayout) {
  std::mt19937 random(6);
  const auto backend = make_cpu_backend({1, ""});
  const auto bytes = [&](WeightType type, Packing packing) {
    const auto tensor = random_tensor(type, 32, 512, random);
    const RawTensor* const part = tensor.get();
    return backend->pack({&part, 1}, {}, packing)->bytes;
  };
  EXPECT_EQ(bytes(WeightType::kQ4_0, Packing::kFloat32), 32u * 512 * 4);
  EXPECT_EQ(bytes(WeightType::kQ4_0, Packing::kBFloat16), 32u * 512 * 2);
  EXPECT_EQ(bytes(WeightType::kQ4_0, Packing::kNative), 32u * 16 * 18);  // as in the file: 18 bytes a block
  EXPECT_EQ(bytes(WeightType::kQ4_1, Packing::kNative), 32u * 16 * 20);
  EXPECT_EQ(bytes(WeightType::kQ8_0, Packing::kNative), 32u * 16 * 34);
  EXPECT_EQ(bytes(WeightType::kQ4K, Packing::kNative), 32u * 2 * (128 + 4 + 16));  // scales as whole bytes
  EXPECT_EQ(bytes(WeightType::kQ6K, Packing::kNative), 32u * 2 * (256 + 2 + 16));
}

}  // namespace
}  // namespace tokenmill
