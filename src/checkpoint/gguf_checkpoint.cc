#include "checkpoint/gguf_checkpoint.h"

#include <map>
#include <set>

#include "checkpoint/load_error.h"
#include "checkpoint/tensor_names.h"
#include "checkpoint/tensor_store.h"

namespace tokenmill {

namespace {

struct GgmlType {
  uint32_t number;
  const char* name;
};

// ggml's numbers (ggml.h, enum ggml_type); the supported ones are found in kWeightTypes by name.
constexpr GgmlType kGgmlTypes[] = {
    {0, "F32"},      {1, "F16"},     {2, "Q4_0"},     {3, "Q4_1"},   {6, "Q5_0"},    {7, "Q5_1"},   {8, "Q8_0"},
    {9, "Q8_1"},     {10, "Q2_K"},   {11, "Q3_K"},    {12, "Q4_K"},  {13, "Q5_K"},   {14, "Q6_K"},  {15, "Q8_K"},
    {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"}, {19, "IQ1_S"}, {20, "IQ4_NL"}, {21, "IQ3_S"}, {22, "IQ2_S"},
    {23, "IQ4_XS"},  {24, "I8"},     {25, "I16"},     {26, "I32"},   {27, "I64"},    {28, "F64"},   {29, "IQ1_M"},
    {30, "BF16"},    {34, "TQ1_0"},  {35, "TQ2_0"},   {39, "MXFP4"},
};

std::string supported_types() {
  std::string out;
  for (const WeightTypeInfo& type : kWeightTypes) out += (out.empty() ? "" : ", ") + std::string(type.name);
  return out;
}

class GgufCheckpoint final : public TensorStore {
 public:
  explicit GgufCheckpoint(const std::string& path);

 private:
  void place(const TensorSpec& spec, const GgufTensor& found);
  void decide_dtype();

  GgufFile file_;
  int64_t file_index_ = 0;
  bool permuted_ = false;  // q and k rows are in the order of GGUF's llama converter
};

GgufCheckpoint::GgufCheckpoint(const std::string& path) : file_(path) {
  config_ = parse_gguf_config(file_);
  resolved_path_ = path;
  format_ = "gguf";
  tokenizer_source_.gguf_path = path;
  file_index_ = add_file(file_.file());
  permuted_ = file_.get_string("general.architecture") == "llama";
  std::set<std::string, std::less<>> used;
  for (const TensorSpec& spec : tensor_specs(config_)) {
    const std::string name = gguf_from_canonical(spec.name, config_.sandwich_norms);
    const GgufTensor* found = file_.find_tensor(name);
    if (found == nullptr) {
      fail_load(path, "tensor " + quote(name) + " is missing; the file is not complete: download or convert it again");
    }
    place(spec, *found);
    used.insert(name);
  }
  for (const GgufTensor& tensor : file_.tensors()) {
    if (!tensor.name.starts_with("blk.") || used.contains(tensor.name)) continue;
    if (tensor.name.ends_with("attn_rot_embd.weight")) continue;  // a constant that old converters wrote
    fail_load(path,
              "tensor " + quote(tensor.name) + " has no place in " + config_.architecture +
                  "; this kind of model is not supported",
              ErrorKind::kUnsupported);
  }
  decide_dtype();
}

void GgufCheckpoint::place(const TensorSpec& spec, const GgufTensor& found) {
  const std::string what = "tensor " + quote(found.name);
  const auto type = weight_type_of_ggml(found.type);
  const bool vector = spec.shape.size() == 1;
  if (!type || (vector && info(*type).quantized)) {
    fail_load(file_.path(),
              what + " has type " + ggml_type_name(found.type) + "; the types that are supported are " +
                  (vector ? "F32, F16, BF16" : supported_types()) + ": use another quantisation of this model",
              ErrorKind::kUnsupported);
  }
  if (found.shape != spec.shape) {
    fail_load(file_.path(), what + " must have shape " + shape_text(spec.shape) + " by the metadata, but has " +
                                shape_text(found.shape) + " (outermost first); convert the model again");
  }
  RawTensor tensor;
  tensor.name = spec.name;
  tensor.type = *type;
  tensor.shape = spec.shape;
  if (found.data.size() != tensor.bytes()) {
    fail_load(file_.path(), what + " must have " + std::to_string(tensor.bytes()) + " bytes, but has " +
                                std::to_string(found.data.size()) + "; download the file again");
  }
  const bool q = spec.name.find("self_attn.q_proj.") != std::string::npos;
  const bool k = spec.name.find("self_attn.k_proj.") != std::string::npos;
  if (!permuted_ || !(q || k)) {
    add(std::move(tensor), file_index_, found.data);
    return;
  }
  // A bias is a column of one element a row.
  const size_t row_bytes = vector ? static_cast<size_t>(info(*type).block_bytes) : tensor.row_bytes();
  add(std::move(tensor), file_index_, found.data,
      [data = found.data, heads = q ? config_.num_heads : config_.num_kv_heads, head_dim = config_.head_dim,
       row_bytes] { return unpermute_heads(data, heads, head_dim, row_bytes); });
}

void GgufCheckpoint::decide_dtype() {
  std::map<WeightType, int64_t> elements;
  int64_t quantized = 0, total = 0;
  for (const RawTensor* tensor : tensors()) {
    if (tensor->shape.size() != 2) continue;
    const int64_t count = tensor->rows() * tensor->cols();
    total += count;
    (info(tensor->type).quantized ? quantized : elements[tensor->type]) += count;
  }
  config_.quantized = quantized > total / 2;
  config_.dtype = WeightType::kBF16;
  if (config_.quantized) return;
  int64_t most = 0;
  for (const auto& [type, count] : elements) {
    if (count > most) {
      most = count;
      config_.dtype = type;
    }
  }
}

}  // namespace

std::optional<WeightType> weight_type_of_ggml(uint32_t type) {
  const std::string name = ggml_type_name(type);
  for (size_t i = 0; i < std::size(kWeightTypes); ++i) {
    if (name == kWeightTypes[i].name) return static_cast<WeightType>(i);
  }
  return std::nullopt;
}

std::string ggml_type_name(uint32_t type) {
  for (const GgmlType& entry : kGgmlTypes) {
    if (entry.number == type) return entry.name;
  }
  return "number " + std::to_string(type);
}

std::unique_ptr<Checkpoint> open_gguf(const std::string& path, const CheckpointOptions& options) {
  if (options.model_override_json.find_first_not_of("{} \t\r\n") != std::string::npos) {
    fail_load("json_model_override_args",
              "must be '{}' for a GGUF file, whose settings are in the file itself (" + path + ")",
              ErrorKind::kUnsupported);
  }
  return std::make_unique<GgufCheckpoint>(path);
}

}  // namespace tokenmill
