#include "scenarios/shadow_model.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <utility>

#include "engine/engine_impl.h"
#include "engine/resolve_args.h"
#include "ops/backend_registry.h"
#include "ops/cpu/kv_layout.h"
#include "scenarios/shadow_device.h"
#include "util/beside_backend.h"

#ifdef __SANITIZE_THREAD__
// libstdc++.so counts an exception's references in code that is not instrumented, so the last release looks like a race
// with the thread that made the exception. The sanitizer's own library calls this, so it must not be hidden.
extern "C" __attribute__((visibility("default"))) const char* __tsan_default_suppressions() {
  return "race:std::__exception_ptr::exception_ptr::_M_release\n";
}
#endif

namespace tokenmill::testing {
namespace {

constexpr int64_t kHeadDim = 16, kLayers = 2, kHashDigits = 4;

// A matrix of the backend's as the host sees it: the memory itself, or a copy that store() takes back to the device.
class HostMatrix {
 public:
  HostMatrix(Backend& backend, Matrix device, bool load) : backend_(backend), device_(device), host(device) {
    if (backend.name() != "cuda") return;
    copy_.resize(static_cast<size_t>(device.rows * device.cols));
    host.data = reinterpret_cast<std::byte*>(copy_.data());
    host.stride = device.cols;
    if (!load) return;
    for (int64_t r = 0; r < device.rows; ++r)
      backend.copy_to_host(host.row<float>(r), device.row<float>(r), row_bytes());
  }
  void store() {
    if (copy_.empty()) return;
    for (int64_t r = 0; r < device_.rows; ++r) {
      backend_.copy_from_host(device_.row<float>(r), host.row<float>(r), row_bytes());
    }
  }

 private:
  size_t row_bytes() const { return static_cast<size_t>(device_.cols) * sizeof(float); }
  Backend& backend_;
  Matrix device_;
  std::vector<float> copy_;

 public:
  Matrix host;
};

// Keys and values of all layers as the host sees them; on a device a copy of the blocks between the step's first and
// last.
class HostKv {
 public:
  explicit HostKv(ForwardContext& context) : on_device_(context.backend.name() == "cuda") {
    for (int64_t l = 0; l < kLayers; ++l) layers_[l] = context.kv.layer(l);
    if (!on_device_ || context.batch.block_tables.empty()) return;
    const auto [first, last] = std::ranges::minmax(context.batch.block_tables);
    for (int64_t l = 0; l < kLayers; ++l) {
      const int64_t block_bytes = layers_[l].block_bytes;
      copies_[l].resize(static_cast<size_t>(block_bytes * (last - first + 1)));
      context.backend.copy_to_host(copies_[l].data(), layers_[l].base + block_bytes * first, copies_[l].size());
      layers_[l].base = copies_[l].data();
    }
    first_block_ = first;
  }

  // One token's key and value, kHeadDim numbers each in the pool's type.
  void read(int64_t layer, int32_t block, int32_t row, std::byte* key, std::byte* value) const {
    const KvLayer& kv = layers_[layer];
    const std::byte* const memory = kv.base + (block - first_block_) * kv.block_bytes;
    if (on_device_) {  // [K, V][page_size][kHeadDim]: ops/cuda/kv_layout.h
      const size_t bytes = kHeadDim * size_of(kv.dtype);
      std::memcpy(key, memory + static_cast<size_t>(row) * bytes, bytes);
      std::memcpy(value, memory + static_cast<size_t>(kv.page_size + row) * bytes, bytes);
      return;
    }
    const KvLayout layout(kv);
    const std::byte* const tile = memory + layout.tile_offset(0, row);
    copy_k_rows(layout, tile, layout.tile_keys, row % layout.tile_keys, key, 1, 0, 1);
    copy_v_rows(layout, tile + layout.tile_bytes(), layout.tile_keys, row % layout.tile_keys, value, 1, 0, 1);
  }
  DType dtype() const { return layers_[0].dtype; }

 private:
  bool on_device_;
  int32_t first_block_ = 0;  // where the copies begin
  KvLayer layers_[kLayers];
  std::vector<std::byte> copies_[kLayers];
};

class ShadowModel final : public Model {
 public:
  explicit ShadowModel(ShadowOptions options) : options_(std::move(options)) {
    config_.architecture = "ShadowForCausalLM";
    config_.hidden_size = kHashDigits;
    config_.intermediate_size = 1;
    config_.num_layers = kLayers;
    config_.vocab_size = options_.vocab_size;
    config_.num_heads = config_.num_kv_heads = 1;
    config_.head_dim = kHeadDim;
    config_.max_position = options_.context_length;
    config_.layer_window.assign(kLayers, 0);
    config_.eos_token_ids = options_.eos_token_ids;
  }

  const ModelConfig& config() const override { return config_; }
  Packing packing() const override { return options_.packing; }
  size_t weight_bytes() const override { return 0; }
  size_t workspace_bytes(int64_t tokens) const override {
    Workspace measure;
    measure.take(tokens, 3 * kHeadDim);
    measure.take(tokens, kHeadDim);
    return measure.bytes_peak();
  }

  void forward(ForwardContext& context, Matrix hidden) const override {
    if (context.num_layers < kLayers) {  // a device is warmed up: no step of any sequence
      HostMatrix(context.backend, hidden, false).store();
      return;
    }
    if (options_.on_forward) options_.on_forward(context.batch);
    const Batch& batch = context.batch;
    const Matrix qkv = context.workspace.take(hidden.rows, 3 * kHeadDim);
    HostMatrix tokens(context.backend, qkv, false), states(context.backend, hidden, false);
    const std::vector<int32_t> ids = tokens_of(context);
    for (int64_t t = 0; t < hidden.rows; ++t) write_token(tokens.host.row<float>(t), ids[static_cast<size_t>(t)]);
    tokens.store();
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      RopeKvArgs args;
      args.qkv = qkv;
      args.q_heads = 1;
      args.kv = context.kv.layer(layer);
      context.backend.rope_kv_write(args);
    }
    const HostKv kv(context);
    for (const BatchRow& row : batch.rows) hash_row(context, kv, row, states.host);
    states.store();
  }

  void final_norm(ForwardContext& context, Matrix hidden, Matrix out) const override {
    const HostMatrix from(context.backend, hidden, true);
    HostMatrix to(context.backend, out, false);
    for (int64_t r = 0; r < hidden.rows; ++r) {
      std::copy_n(from.host.row<float>(r), kHashDigits, to.host.row<float>(r));
    }
    to.store();
  }

  // A fixed pseudo-random logit a token; greedy decoding takes the largest.
  void logits(ForwardContext& context, Matrix hidden, Matrix out) const override {
    const HostMatrix from(context.backend, hidden, true);
    HostMatrix to(context.backend, out, false);
    for (int64_t r = 0; r < hidden.rows; ++r) {
      uint64_t hash = 0;
      for (int64_t digit = 0; digit < kHashDigits; ++digit) {
        hash |= static_cast<uint64_t>(from.host.row<float>(r)[digit]) << (16 * digit);
      }
      for (int64_t id = 0; id < out.cols; ++id) to.host.row<float>(r)[id] = logit(hash, id);
    }
    to.store();
  }

  static float logit(uint64_t hash, int64_t id) {
    return static_cast<float>(hash_step(hash, static_cast<uint64_t>(id)) >> 40) * 0x1p-22f;  // [0, 4)
  }

 private:
  // Where the batch does not name all of them, as embed() finds them.
  std::vector<int32_t> tokens_of(ForwardContext& context) const {
    if (context.batch.slot_tokens.empty()) return context.batch.tokens;
    std::vector<int32_t> ids;
    const Matrix rows = context.workspace.take(static_cast<int64_t>(context.batch.tokens.size()), kHeadDim);
    context.backend.embed(context.batch.tokens, *options_.ids, 1.0f, rows);
    const HostMatrix values(context.backend, rows, true);
    for (int64_t t = 0; t < rows.rows; ++t) ids.push_back(static_cast<int32_t>(values.host.row<float>(t)[0]));
    return ids;
  }

  // Bytes of the id, which bf16 holds exactly, in k and, in another order, in v.
  static void write_token(float* qkv, int32_t token) {
    std::fill_n(qkv, 3 * kHeadDim, 0.0f);
    for (int byte = 0; byte < 3; ++byte) {
      const auto value = static_cast<float>(token >> (8 * byte) & 255);
      qkv[kHeadDim + byte] = value;
      qkv[2 * kHeadDim + 15 - byte] = value;
    }
  }

  static int32_t read_id(DType dtype, const std::byte* values, bool reversed) {
    int32_t id = 0;
    for (int byte = 0; byte < 3; ++byte) {
      const int dim = reversed ? 15 - byte : byte;
      const float value = dtype == DType::kF32 ? reinterpret_cast<const float*>(values)[dim]
                                               : bf16_to_f32(reinterpret_cast<const uint16_t*>(values)[dim]);
      if (!(value >= 0 && value <= 255)) return -1;
      id |= static_cast<int32_t>(value) << (8 * byte);
    }
    return id;
  }

  // The token whose K and V lie in this slot, -1 where the two or the layers do not agree.
  static int32_t read_token(const HostKv& kv, int32_t block, int32_t row) {
    int32_t found = -2;
    for (int64_t l = 0; l < kLayers; ++l) {
      alignas(64) std::byte key[kHeadDim * sizeof(float)], value[kHeadDim * sizeof(float)];
      kv.read(l, block, row, key, value);
      const int32_t id = read_id(kv.dtype(), key, false);
      if (id != read_id(kv.dtype(), value, true) || (found != -2 && id != found)) return -1;
      found = id;
    }
    return found;
  }

  static void hash_row(ForwardContext& context, const HostKv& kv, const BatchRow& row, Matrix hidden) {
    const int32_t page = context.kv.shape().page_size;
    uint64_t hash = 0;
    for (int32_t position = 0; position < row.kv_len; ++position) {
      const int32_t block = context.batch.block_tables[static_cast<size_t>(row.block_begin + position / page)];
      hash = hash_step(hash, static_cast<uint64_t>(read_token(kv, block, position % page)));
      const int32_t q = position - (row.kv_len - row.q_len);
      if (q < 0) continue;
      for (int64_t digit = 0; digit < kHashDigits; ++digit) {
        hidden.row<float>(row.token_begin + q)[digit] = static_cast<float>(hash >> (16 * digit) & 0xffff);
      }
    }
  }

  ShadowOptions options_;
  ModelConfig config_;
};

std::shared_ptr<const Weight> pack_ids(Backend& backend, int64_t vocab_size) {
  std::vector<float> values(static_cast<size_t>(vocab_size * kHeadDim));
  for (int64_t id = 0; id < vocab_size; ++id) values[static_cast<size_t>(id * kHeadDim)] = static_cast<float>(id);
  RawTensor tensor;
  tensor.name = "ids";
  tensor.shape = {vocab_size, kHeadDim};
  tensor.data = reinterpret_cast<const std::byte*>(values.data());
  const RawTensor* const parts[] = {&tensor};
  return backend.pack(parts, {}, Packing::kFloat32);
}

}  // namespace

std::unique_ptr<Model> make_shadow_model(ShadowOptions options) {
  return std::make_unique<ShadowModel>(std::move(options));
}

std::vector<int32_t> shadow_greedy(std::vector<int32_t> prompt, int64_t tokens, int64_t vocab_size) {
  uint64_t hash = 0;
  for (const int32_t id : prompt) hash = hash_step(hash, static_cast<uint64_t>(id));
  std::vector<int32_t> output;
  while (static_cast<int64_t>(output.size()) < tokens) {
    int32_t best = 0;
    for (int32_t id = 1; id < vocab_size; ++id) {
      if (ShadowModel::logit(hash, id) > ShadowModel::logit(hash, best)) best = id;
    }
    output.push_back(best);
    hash = hash_step(hash, static_cast<uint64_t>(best));
  }
  return output;
}

std::shared_ptr<const Tokenizer> make_byte_tokenizer() {
  // GPT-2's map from bytes to printable characters.
  nlohmann::json vocab = nlohmann::json::object();
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    const int point = printable ? byte : next++;
    std::string text;
    if (point < 0x80) {
      text = static_cast<char>(point);
    } else {
      text = {static_cast<char>(0xc0 | point >> 6), static_cast<char>(0x80 | (point & 63))};
    }
    vocab[text] = byte;
  }
  vocab["<eos>"] = 256;
  for (int word = 257; word < 512; ++word) vocab["w" + std::to_string(word)] = word;
  const nlohmann::json tokenizer = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens",
       {{{"id", 256},
         {"content", "<eos>"},
         {"single_word", false},
         {"lstrip", false},
         {"rstrip", false},
         {"normalized", false},
         {"special", true}}}},
      {"normalizer", nullptr},
      {"pre_tokenizer",
       {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}}},
      {"post_processor", nullptr},
      {"decoder", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}}},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"vocab", vocab},
        {"merges", nlohmann::json::array()}}}};
  const TempFolder folder;
  folder.write("tokenizer.json", tokenizer.dump());
  folder.write(
      "tokenizer_config.json",
      R"({"eos_token": "<eos>", "chat_template": "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"})");
  return Tokenizer::from_folder(folder.path());
}

std::shared_ptr<EngineCore> make_shadow_core(ShadowEngineOptions options) {
  options.args.model_path = "shadow";
  options.args.skip_tokenizer_init = !options.tokenizer;
  if (!options.args.random_seed) options.args.random_seed = 7;
  // TOKENMILL_SCENARIO_DEVICE=cuda runs the same scenarios over the device's memory and operations.
  const char* const device = std::getenv("TOKENMILL_SCENARIO_DEVICE");
  options.args.device = device != nullptr ? device : "cpu";
  if (options.args.device != "cpu") {
    options.args.disable_cuda_graph = true;  // the model computes on the host
    if (!options.args.page_size) options.args.page_size = 32;
    if (!options.args.chunked_prefill_size) options.args.chunked_prefill_size = 512;
    if (!options.args.max_running_requests) options.args.max_running_requests = 256;
  }
  if (!options.args.max_total_tokens) options.args.max_total_tokens = 1 << 16;
  EngineParts parts;
  parts.backend = make_backend(*options.args.device, CpuOptions{.num_threads = 1, .isa = ""});
  if (options.args.device == "cpu" && (options.overlap || std::getenv("TOKENMILL_SCENARIO_OVERLAP") != nullptr)) {
    parts.backend = std::make_unique<BesideBackend>(std::move(parts.backend));
  }
  if (parts.backend->overlaps()) options.model.ids = pack_ids(*parts.backend, options.model.vocab_size);
  parts.model = make_shadow_model(std::move(options.model));
  if (options.tokenizer) parts.tokenizer = make_byte_tokenizer();
  parts.log_sink = [on_log = std::move(options.on_log)](LogLevel, const std::string& line) {
    if (on_log) on_log(line);
  };
  parts.check_every_step = true;
  return std::make_shared<EngineCore>(resolve_server_args(std::move(options.args)), std::move(parts));
}

OpenEngine::OpenEngine(ShadowEngineOptions options) : OpenEngine(make_shadow_core(std::move(options))) {}

OpenEngine::OpenEngine(std::shared_ptr<EngineCore> made)
    : core(std::move(made)), engine(std::make_shared<Engine::Impl>(core)) {
  core->start();
}

Engine make_shadow_engine(ShadowEngineOptions options) {
  auto core = make_shadow_core(std::move(options));
  core->start();
  return Engine(std::make_shared<Engine::Impl>(std::move(core)));
}

std::vector<int32_t> random_ids(uint64_t seed, int64_t count, int64_t vocab_size) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) {
    ids.push_back(static_cast<int32_t>(hash_step(seed, static_cast<uint64_t>(i)) % static_cast<uint64_t>(vocab_size)));
  }
  return ids;
}

Request ids_request(std::vector<int32_t> ids, int64_t max_new_tokens) {
  Request request;
  request.input_ids = std::move(ids);
  request.sampling_params.max_new_tokens = max_new_tokens;
  request.sampling_params.temperature = 0;
  return request;
}

}  // namespace tokenmill::testing
