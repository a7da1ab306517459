// pack(): weights to row-major bf16 or fp32 on the device. Quantised weights are dequantised and rounded to bf16, also
// in mode kNative: kernels that read the formats themselves do not exist here yet.
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "base/mapped_file.h"
#include "ops/cuda/cuda_backend.h"
#include "ops/cuda/weight_upload.h"
#include "ops/dequantize.h"
#include "tokenmill/error.h"

namespace tokenmill {
namespace {

bool is_finite_float(float value) { return (std::bit_cast<uint32_t>(value) & 0x7f800000u) != 0x7f800000u; }
bool is_finite_bf16(uint16_t value) { return (value & 0x7f80u) != 0x7f80u; }

// Four at a time: an exponent of all ones, and only that, carries into the (cleared) sign.
bool are_finite_bf16(const uint16_t* values, int64_t count) {
  uint64_t signs = 0;
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    uint64_t four;
    std::memcpy(&four, values + i, sizeof(four));
    signs |= (four & 0x7f807f807f807f80u) + 0x0080008000800080u;
  }
  bool finite = (signs & 0x8000800080008000u) == 0;
  for (; i < count; ++i) finite &= is_finite_bf16(values[i]);
  return finite;
}

void check_parts(std::span<const RawTensor* const> parts, std::span<const float> bias) {
  TM_CHECK(!parts.empty());
  int64_t n = 0;
  for (const RawTensor* part : parts) {
    if (part->shape.size() != 2 || part->rows() <= 0 || part->cols() <= 0) {
      throw Error(ErrorKind::kValue, "Tensor " + part->name + " must be a matrix with at least one row and column.");
    }
    if (part->cols() != parts[0]->cols()) {
      throw Error(ErrorKind::kValue, "Tensors " + parts[0]->name + " and " + part->name + " have " +
                                         std::to_string(parts[0]->cols()) + " and " + std::to_string(part->cols()) +
                                         " columns; they must be equal.");
    }
    if (part->cols() % info(part->type).block_values != 0) {
      throw Error(ErrorKind::kValue, "Tensor " + part->name + " has " + std::to_string(part->cols()) +
                                         " columns, which is no multiple of the " +
                                         std::to_string(info(part->type).block_values) + " values of a " +
                                         info(part->type).name + " block.");
    }
    n += part->rows();
  }
  TM_CHECK(bias.empty() || static_cast<int64_t>(bias.size()) == n);
  for (const float value : bias) {
    if (!is_finite_float(value)) {
      throw Error(ErrorKind::kValue, "The bias of " + parts[0]->name + " holds NaN or infinity.");
    }
  }
}

// A row as it is stored in the packed type; false if a value is NaN or infinite. values: scratch of k floats.
bool pack_row(const RawTensor& part, const std::byte* source, bool is_float, float* values, std::byte* out) {
  const int64_t k = part.cols();
  bool finite = true;
  auto* const halves = reinterpret_cast<uint16_t*>(out);
  if (!is_float && part.type == WeightType::kBF16) {
    if (out != source) std::memcpy(out, source, part.row_bytes());
    return are_finite_bf16(halves, k);
  }
  float* const floats = is_float ? reinterpret_cast<float*>(out) : values;
  dequantize_row(part.type, source, k, floats);
  for (int64_t i = 0; i < k; ++i) finite &= is_finite_float(floats[i]);
  if (is_float) return finite;
  for (int64_t i = 0; i < k; ++i) {
    halves[i] = f32_to_bf16(values[i]);
    finite &= is_finite_bf16(halves[i]);  // also what overflows in rounding
  }
  return finite;
}

// Rows as they are stored; false with errno where they cannot be read.
bool copy_rows(const RawTensor& part, int64_t first, int64_t count, std::byte* out) {
  const std::byte* const source = part.data + static_cast<size_t>(first) * part.row_bytes();
  const size_t bytes = static_cast<size_t>(count) * part.row_bytes();
  if (part.file != nullptr) return part.file->read(source, out, bytes);
  std::memcpy(out, source, bytes);
  return true;
}

void lower_to(std::atomic<int64_t>& least, int64_t value) {
  int64_t seen = least.load();
  while (value < seen && !least.compare_exchange_weak(seen, value)) {
  }
}

}  // namespace

std::unique_ptr<Weight> CudaBackend::pack(std::span<const RawTensor* const> parts, std::span<const float> bias,
                                          Packing packing) {
  check_parts(parts, bias);
  use_device();
  auto weight = std::make_unique<CudaWeight>();
  weight->name = parts[0]->name;
  weight->k = parts[0]->cols();
  for (const RawTensor* part : parts) weight->n += part->rows();
  weight->is_float = packing == Packing::kFloat32;
  const int64_t size = weight->is_float ? 4 : 2, per_load = 16 / size;
  weight->stride = (weight->k + per_load - 1) / per_load * per_load;
  const size_t row_bytes = static_cast<size_t>(weight->stride * size);
  try {
    weight->memory = DeviceMemory(static_cast<size_t>(weight->n) * row_bytes);
  } catch (const Error& error) {
    throw Error(error.kind(), std::string(error.what()) + " Loading tensor " + weight->name + ".");
  }

  if (upload_ == nullptr) upload_ = std::make_unique<WeightUpload>(stream());
  struct Scratch {
    std::vector<float> values;
    std::vector<std::byte> stored;
  };
  std::vector<Scratch> scratches(static_cast<size_t>(upload_->num_threads()));
  const size_t used = static_cast<size_t>(weight->k * size);
  std::byte* target = weight->memory.data();
  for (const RawTensor* part : parts) {
    std::atomic<int64_t> bad_row = std::numeric_limits<int64_t>::max();
    std::atomic<int> read_error = -1;  // an errno
    const bool as_stored = !weight->is_float && part->type == WeightType::kBF16 && part->row_bytes() == row_bytes;
    upload_->rows(part->rows(), row_bytes, target, [&](int64_t first, int64_t count, std::byte* out, int worker) {
      Scratch& scratch = scratches[static_cast<size_t>(worker)];
      scratch.values.resize(static_cast<size_t>(weight->k));
      if (!as_stored) scratch.stored.resize(static_cast<size_t>(count) * part->row_bytes());
      const std::byte* stored = as_stored ? out : scratch.stored.data();
      if (!copy_rows(*part, first, count, as_stored ? out : scratch.stored.data())) {
        read_error = errno;
        return;
      }
      if (as_stored && are_finite_bf16(reinterpret_cast<const uint16_t*>(out), count * weight->k)) return;
      for (int64_t row = first; row < first + count; ++row, out += row_bytes, stored += part->row_bytes()) {
        std::memset(out + used, 0, row_bytes - used);
        if (!pack_row(*part, stored, weight->is_float, scratch.values.data(), out)) lower_to(bad_row, row);
      }
    });
    if (read_error >= 0) {
      TM_CUDA(cudaStreamSynchronize(stream()));
      throw Error(ErrorKind::kValue, part->file->path() + ": could not be read: " +
                                         (read_error == 0 ? "it has become shorter" : std::strerror(read_error)) + ".");
    }
    if (bad_row != std::numeric_limits<int64_t>::max()) {
      TM_CUDA(cudaStreamSynchronize(stream()));  // what is under way goes to memory that is about to be freed
      throw Error(ErrorKind::kValue, "Tensor " + part->name + " holds NaN or infinity in row " +
                                         std::to_string(bad_row.load()) +
                                         ": the file is damaged, or its weights overflow.");
    }
    target += static_cast<size_t>(part->rows()) * row_bytes;
  }
  if (!bias.empty()) {
    weight->bias_memory = DeviceMemory(bias.size_bytes());
    copy_from_host(weight->bias_memory.data(), bias.data(), bias.size_bytes());
    weight->bias = reinterpret_cast<const float*>(weight->bias_memory.data());
  }
  weight->bytes = weight->memory.bytes() + bias.size_bytes();
  return weight;
}

}  // namespace tokenmill
