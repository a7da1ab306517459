// A model of drawn quantised weights, for formats that no small file here holds: every matrix is random blocks of one
// format, scaled to a sensible size.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"

namespace tokenmill::test {

class QuantizedCheckpoint final : public Checkpoint {
 public:
  // A Llama of 2 layers whose sizes are multiples of 256, what the k-quants need.
  QuantizedCheckpoint(WeightType type, uint64_t seed);

  const RawTensor* find(std::string_view canonical_name) const override;
  std::vector<const RawTensor*> tensors() const override;
  void release(const RawTensor&) const override {}
  int64_t num_files() const override { return 1; }
  int64_t file_of(const RawTensor&) const override { return 0; }

 private:
  void add_matrix(const std::string& name, int64_t rows, int64_t cols, WeightType type, uint64_t seed);
  void add_ones(const std::string& name, int64_t size);

  std::map<std::string, RawTensor, std::less<>> tensors_;
};

}  // namespace tokenmill::test
