#include "checkpoint/fingerprint.h"

#include <algorithm>
#include <cstddef>
#include <string_view>
#include <vector>

#include "base/mapped_file.h"
#include "checkpoint/hub/digest.h"
#include "checkpoint/model_path.h"

namespace tokenmill {
namespace {

constexpr size_t kHeadBytes = 64 << 10, kSampleBytes = 4 << 10, kSamples = 64;

// Each text with its length, so that no two lists of texts read alike.
void add_text(Digest& digest, std::string_view text) {
  digest.update(std::to_string(text.size()) + ':');
  digest.update(text);
}

std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void add_whole(Digest& digest, const std::string& path) { add_text(digest, text_of(MappedFile(path).bytes())); }

void add_samples(Digest& digest, const std::string& path) {
  const MappedFile file(path);
  const std::span<const std::byte> bytes = file.bytes();
  add_text(digest, std::to_string(bytes.size()));
  add_text(digest, text_of(bytes.first(std::min(kHeadBytes, bytes.size()))));
  for (size_t i = 0; i < kSamples; ++i) {
    const size_t begin = bytes.size() / kSamples * i;
    add_text(digest, text_of(bytes.subspan(begin, std::min(kSampleBytes, bytes.size() - begin))));
  }
}

}  // namespace

std::string model_fingerprint(const std::string& path, const CheckpointOptions& options) {
  const ModelPath model = resolve_model_path(path, options);
  Digest digest(Digest::Kind::kSha256);
  add_text(digest, options.model_override_json);
  const bool dummy = options.load_format == "dummy";
  add_text(digest, dummy ? "dummy " + std::to_string(options.dummy_seed) : "");
  if (model.is_gguf) {
    add_samples(digest, model.path);
    return digest.finish();
  }
  for (const std::string& name : list_files(model.path)) {
    const bool weights = name.ends_with(".safetensors") || name.ends_with(".gguf");
    if (name != "config.json" && (dummy || !weights)) continue;
    add_text(digest, name);
    const std::string file = model.path + "/" + name;
    weights ? add_samples(digest, file) : add_whole(digest, file);
  }
  return digest.finish();
}

}  // namespace tokenmill
