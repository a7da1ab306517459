// What the model tests share: models on a chosen backend, golden files, temporary folders.
#pragma once

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "ops/backend.h"
#include "verify/probe.h"

namespace tokenmill::test {

enum class BackendKind { kNaive, kCpu, kCuda };
std::unique_ptr<Backend> make_backend(BackendKind kind, int num_threads = 1);

std::unique_ptr<Probe> make_probe(const Checkpoint& checkpoint, std::unique_ptr<Backend> backend, Packing packing,
                                  const ProbeOptions& options);

nlohmann::json read_json(const std::filesystem::path& path);
std::vector<float> floats_of_base64(const std::string& text);

// A folder that goes with the object.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// The logits after each id of `ids`, [ids.size()][vocab], fed to sequence 0.
std::vector<std::vector<float>> all_logits(Probe& probe, const std::vector<int32_t>& ids);

// Ids drawn from [0, vocab_size), the same for the same seed.
std::vector<int32_t> random_ids(uint32_t seed, size_t count, int64_t vocab_size);

}  // namespace tokenmill::test
