#include "models/model_test_util.h"

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <stdexcept>
#include <utility>

#include "models/model.h"
#include "models/naive_backend.h"
#include "ops/backend_registry.h"

namespace tokenmill::test {

std::unique_ptr<Backend> make_backend(BackendKind kind, int num_threads) {
  if (kind == BackendKind::kNaive) return std::make_unique<NaiveBackend>();
  return tokenmill::make_backend(kind == BackendKind::kCuda ? "cuda" : "cpu", {.num_threads = num_threads, .isa = ""});
}

std::unique_ptr<Probe> make_probe(const Checkpoint& checkpoint, std::unique_ptr<Backend> backend, Packing packing,
                                  const ProbeOptions& options) {
  std::unique_ptr<Model> model = load_model(checkpoint, *backend, packing, nullptr);
  return std::make_unique<Probe>(std::move(backend), std::move(model), options);
}

nlohmann::json read_json(const std::filesystem::path& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot read " + path.string());
  return nlohmann::json::parse(file);
}

std::vector<float> floats_of_base64(const std::string& text) {
  static const std::string kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes;
  uint32_t bits = 0;
  int held = 0;
  for (const char c : text) {
    if (c == '=') break;
    const size_t value = kAlphabet.find(c);
    if (value == std::string::npos) throw std::runtime_error("not base64");
    bits = bits << 6 | static_cast<uint32_t>(value);
    held += 6;
    if (held < 8) continue;
    held -= 8;
    bytes.push_back(static_cast<char>(bits >> held & 0xff));
  }
  std::vector<float> floats(bytes.size() / sizeof(float));
  std::memcpy(floats.data(), bytes.data(), floats.size() * sizeof(float));
  return floats;
}

TemporaryFolder::TemporaryFolder() {
  std::string name = (std::filesystem::temp_directory_path() / "tokenmill-test-XXXXXX").string();
  if (!mkdtemp(name.data())) throw std::runtime_error("cannot make a temporary folder");
  path_ = name;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::vector<std::vector<float>> all_logits(Probe& probe, const std::vector<int32_t>& ids) {
  probe.truncate(0, 0);
  std::vector<std::vector<float>> rows(ids.size());
  probe.feed(0, ids, [&](size_t i, std::span<const float> logits) { rows[i].assign(logits.begin(), logits.end()); });
  return rows;
}

std::vector<int32_t> random_ids(uint32_t seed, size_t count, int64_t vocab_size) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint64_t>(vocab_size));
  return ids;
}

}  // namespace tokenmill::test
