// safetensors (https://github.com/huggingface/safetensors#format): one file, or shards listed in
// model.safetensors.index.json. Headers are parsed by the safetensors crate; this file owns the mapping.
#include <cstring>
#include <filesystem>
#include <map>
#include <set>
#include <system_error>

#include "checkpoint/hf_checkpoint.h"
#include "checkpoint/json_file.h"
#include "checkpoint/load_error.h"
#include "checkpoint/model_path.h"
#include "checkpoint/tensor_names.h"
#include "checkpoint/tensor_store.h"
#include "text/shim/tm_text_shim.h"

namespace tokenmill {

namespace fs = std::filesystem;

namespace {

constexpr size_t kMaxIndexBytes = size_t{128} << 20;
constexpr size_t kMaxShards = 4096;
constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

std::string_view view(TmSlice slice) { return {reinterpret_cast<const char*>(slice.data), slice.size}; }

struct Header {
  TmSafetensors* parsed;
  explicit Header(const MappedFile& file) {
    TmBytes error{};
    const auto bytes = file.bytes();
    parsed = tm_safetensors_parse(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), &error);
    if (parsed != nullptr) return;
    const std::string message(reinterpret_cast<const char*>(error.data), error.size);
    tm_bytes_free(error);
    fail_load(file.path(), "not a sound safetensors file (" + quote(message) + "); download it again");
  }
  ~Header() { tm_safetensors_free(parsed); }
  Header(const Header&) = delete;
  Header& operator=(const Header&) = delete;
};

// A tensor as a file has it.
struct FoundTensor {
  std::string raw_name, dtype;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;
  int64_t file = 0;
};

class SafetensorsCheckpoint final : public TensorStore {
 public:
  SafetensorsCheckpoint(const std::string& folder, const CheckpointOptions& options);

 private:
  // Shard file name -> names of the tensors the index puts there; an empty set where there is no index.
  using Shards = std::map<std::string, std::set<std::string, std::less<>>>;

  Shards find_shards(const std::string& folder) const;
  Shards read_index(const std::string& folder) const;
  [[noreturn]] void fail_no_weights(const std::string& folder) const;
  void read_shard(const std::string& path, const std::set<std::string, std::less<>>& indexed);
  void place(const TensorSpec& spec, const FoundTensor& found);
  void place_all(bool has_dtype);
  const std::string& file_name(const FoundTensor& found) const {
    return mapped_[static_cast<size_t>(found.file)]->path();
  }

  std::vector<std::unique_ptr<MappedFile>> mapped_;
  std::map<std::string, FoundTensor, std::less<>> found_;  // by canonical name
};

SafetensorsCheckpoint::SafetensorsCheckpoint(const std::string& folder, const CheckpointOptions& options) {
  const JsonConfig parsed = read_hf_config(folder, options);
  config_ = parsed.config;
  resolved_path_ = folder;
  format_ = "safetensors";
  std::error_code error;
  if (fs::is_regular_file(folder + "/tokenizer.json", error)) tokenizer_source_.folder = folder;
  for (const auto& [name, tensors] : find_shards(folder)) read_shard(folder + "/" + name, tensors);
  place_all(parsed.has_dtype);
}

SafetensorsCheckpoint::Shards SafetensorsCheckpoint::find_shards(const std::string& folder) const {
  const auto is_there = [&](const char* name) {
    std::error_code error;  // a link that leads nowhere counts: opening it says what is wrong
    return fs::symlink_status(folder + "/" + name, error).type() != fs::file_type::not_found;
  };
  if (is_there(kSingleFile)) return {{kSingleFile, {}}};
  if (is_there(kIndexFile)) return read_index(folder);
  fail_no_weights(folder);
}

void SafetensorsCheckpoint::fail_no_weights(const std::string& folder) const {
  std::string other;
  for (const std::string& name : list_files(folder)) {
    for (const char* suffix : {".bin", ".pt", ".pth", ".ckpt", ".bin.index.json"}) {
      if (name.ends_with(suffix) && name != "training_args.bin") {
        fail_load(folder,
                  "holds pickled weights only (" + quote(name) +
                      "), which are not loaded because they can run code; convert them to safetensors or use a "
                      "repository that has model.safetensors",
                  ErrorKind::kUnsupported);
      }
    }
    if (name.ends_with(".safetensors") && other.empty()) other = name;
  }
  fail_load(folder, std::string("holds no weights (neither ") + kSingleFile + " nor " + kIndexFile +
                        (other.empty() ? "" : ", only " + quote(other)) + "); download the whole repository");
}

// A shard must lie inside the folder: a name, or a path of names.
void check_shard_path(const std::string& index, const std::string& tensor, const std::string& shard) {
  const fs::path path(shard);
  bool plain = !shard.empty() && shard.find('\0') == std::string::npos && path.is_relative();
  for (const fs::path& part : path) plain = plain && part != ".." && part != "." && !part.empty();
  if (!plain) {
    fail_load(index, "key 'weight_map." + tensor + "' must name a file inside the model's folder, but is " +
                         quote(shard) + "; download the index again");
  }
}

SafetensorsCheckpoint::Shards SafetensorsCheckpoint::read_index(const std::string& folder) const {
  const std::string file = folder + "/" + kIndexFile;
  const nlohmann::json index = read_json_object(file, kMaxIndexBytes);
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object() || map->empty()) {
    fail_load(file, "key 'weight_map' must be an object of tensor names and shard files; download the index again");
  }
  Shards shards;
  for (const auto& [tensor, shard] : map->items()) {
    if (!shard.is_string()) {
      fail_load(file, "key " + quote("weight_map." + tensor) + " must be the name of a shard file");
    }
    check_shard_path(file, quote(tensor), shard.get<std::string>());
    shards[shard.get<std::string>()].insert(tensor);
    if (shards.size() > kMaxShards) fail_load(file, "names more than " + std::to_string(kMaxShards) + " shards");
  }
  return shards;
}

void SafetensorsCheckpoint::read_shard(const std::string& path, const std::set<std::string, std::less<>>& indexed) {
  mapped_.push_back(std::make_unique<MappedFile>(path));
  const MappedFile& file = *mapped_.back();
  const int64_t file_index = add_file(file);
  const Header header(file);
  std::set<std::string_view> present;
  const size_t count = tm_safetensors_count(header.parsed);
  for (size_t i = 0; i < count; ++i) {
    const TmSafetensor tensor = tm_safetensors_get(header.parsed, i);
    const std::string_view name = view(tensor.name);
    if (!indexed.empty() && !indexed.contains(name)) continue;
    present.insert(name);
    if (tensor.begin > tensor.end || tensor.end > file.size()) {
      fail_load(path, "tensor " + quote(name) + " lies outside the file; download it again");
    }
    FoundTensor found{std::string(name), std::string(view(tensor.dtype)), {}, {}, file_index};
    for (size_t d = 0; d < tensor.ndim; ++d) {
      if (tensor.shape[d] > static_cast<uint64_t>(INT64_MAX)) {
        fail_load(path, "tensor " + quote(name) + " has an impossible shape; download it again");
      }
      found.shape.push_back(static_cast<int64_t>(tensor.shape[d]));
    }
    found.bytes = file.bytes().subspan(tensor.begin, tensor.end - tensor.begin);
    const auto [it, inserted] = found_.emplace(std::string(canonical_from_hf(name)), std::move(found));
    if (!inserted) {
      fail_load(path, "tensor " + quote(name) + " and tensor " + quote(it->second.raw_name) + " of " +
                          file_name(it->second) + " are the same weight; remove one");
    }
  }
  for (const std::string& name : indexed) {
    if (!present.contains(name)) {
      fail_load(path, std::string("tensor ") + quote(name) + " is missing, although " + kIndexFile +
                          " says it is here; download the file again");
    }
  }
}

void SafetensorsCheckpoint::place(const TensorSpec& spec, const FoundTensor& found) {
  const std::string what = "tensor " + quote(found.raw_name);
  RawTensor tensor;
  tensor.name = spec.name;
  tensor.shape = spec.shape;
  if (found.dtype == "F32") {
    tensor.type = WeightType::kF32;
  } else if (found.dtype == "F16") {
    tensor.type = WeightType::kF16;
  } else if (found.dtype == "BF16") {
    tensor.type = WeightType::kBF16;
  } else {
    fail_load(file_name(found), what + " has type " + found.dtype + "; the types that are supported are F32, F16, BF16",
              ErrorKind::kUnsupported);
  }
  if (found.shape != spec.shape) {
    fail_load(file_name(found), what + " must have shape " + shape_text(spec.shape) + " by config.json, but has " +
                                    shape_text(found.shape) + "; config.json and the weights do not belong together");
  }
  if (found.bytes.size() != tensor.bytes()) {
    fail_load(file_name(found), what + " has " + std::to_string(found.bytes.size()) + " bytes, but its shape needs " +
                                    std::to_string(tensor.bytes()) + "; download the file again");
  }
  if (config_.norm_plus_one && is_norm(spec.name)) {
    const WeightType stored = tensor.type;
    tensor.type = WeightType::kF32;
    add(std::move(tensor), found.file, found.bytes,
        [bytes = found.bytes, stored] { return add_one_f32(bytes, stored); });
  } else {
    add(std::move(tensor), found.file, found.bytes);
  }
}

// True for tensors of the model's layers that older transformers versions saved although they are constants.
bool is_constant_buffer(std::string_view name) {
  return name.ends_with("rotary_emb.inv_freq") || name.ends_with("self_attn.masked_bias");
}

void SafetensorsCheckpoint::place_all(bool has_dtype) {
  std::set<std::string, std::less<>> used;
  for (const TensorSpec& spec : tensor_specs(config_)) {
    const auto it = found_.find(spec.name);
    if (it == found_.end()) {
      fail_load(resolved_path_, "tensor " + quote(spec.name) + " is missing from the weights; config.json and the " +
                                    "weights do not belong together, or a file is not complete");
    }
    place(spec, it->second);
    used.insert(spec.name);
  }
  // A tensor inside a layer that this forward pass would leave out means another model than config.json says.
  for (const auto& [name, found] : found_) {
    if (!name.starts_with("layers.") || used.contains(name) || is_constant_buffer(name)) continue;
    const long layer = std::strtol(name.c_str() + std::strlen("layers."), nullptr, 10);
    if (layer >= config_.num_layers) continue;  // fewer layers by json_model_override_args
    fail_load(
        file_name(found),
        "tensor " + quote(found.raw_name) + " has no place in " + config_.architecture + " as config.json sets it",
        ErrorKind::kUnsupported);
  }
  if (!has_dtype) {
    const std::string& dtype = found_.find("embed_tokens.weight")->second.dtype;
    config_.dtype = dtype == "F32" ? WeightType::kF32 : dtype == "F16" ? WeightType::kF16 : WeightType::kBF16;
  }
  found_.clear();
}

}  // namespace

std::unique_ptr<Checkpoint> open_safetensors(const std::string& folder, const CheckpointOptions& options) {
  return std::make_unique<SafetensorsCheckpoint>(folder, options);
}

}  // namespace tokenmill
