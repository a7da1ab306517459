// Engines on a CUDA device, and requests of random ids for them.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "cuda/tiny_args.h"
#include "ops/backend_registry.h"
#include "tokenmill/engine.h"

namespace tokenmill::testing {

inline std::vector<Request> random_requests(size_t count, int64_t vocab, int64_t new_tokens, uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::vector<Request> requests(count);
  for (Request& request : requests) {
    std::vector<int32_t> ids(1 + generator() % 90);
    for (int32_t& id : ids) id = static_cast<int32_t>(generator() % static_cast<uint64_t>(vocab));
    request.input_ids = std::move(ids);
    request.sampling_params.max_new_tokens = new_tokens;
    request.sampling_params.temperature = 0;
    request.sampling_params.ignore_eos = true;
  }
  return requests;
}

inline std::vector<std::vector<int32_t>> ids_of(const std::vector<Output>& outputs) {
  std::vector<std::vector<int32_t>> ids;
  for (const Output& output : outputs) ids.push_back(output.output_ids);
  return ids;
}

inline std::vector<std::vector<int32_t>> alone(Engine& engine, const std::vector<Request>& requests) {
  std::vector<std::vector<int32_t>> ids;
  for (const Request& request : requests) ids.push_back(engine.generate(request).at(0).output_ids);
  return ids;
}

inline int64_t count_differing(const std::vector<std::vector<int32_t>>& a, const std::vector<std::vector<int32_t>>& b) {
  int64_t differing = 0;
  for (size_t i = 0; i < a.size(); ++i) differing += a[i] != b[i];
  return differing;
}

class EngineCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    if (num_cuda_devices() == 0) GTEST_SKIP() << "not run: no CUDA device";
  }
};

}  // namespace tokenmill::testing
