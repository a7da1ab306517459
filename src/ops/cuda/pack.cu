// pack(): weights to row-major bf16, fp16 or fp32 on the device. Quantised weights are dequantised and rounded to bf16
// or fp16, also in mode kNative: kernels that read the formats themselves do not exist here yet.
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

// bf16 or fp16 values four at a time: an exponent of all ones, and only that, carries into the (cleared) sign.
bool are_finite(DType dtype, const uint16_t* values, int64_t count) {
  const uint16_t exponent = dtype == DType::kF16 ? 0x7c00u : 0x7f80u, lowest = exponent & -exponent;
  constexpr uint64_t kFour = 0x0001000100010001u;
  uint64_t signs = 0;
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    uint64_t four;
    std::memcpy(&four, values + i, sizeof(four));
    signs |= (four & exponent * kFour) + lowest * kFour;
  }
  bool finite = (signs & 0x8000u * kFour) == 0;
  for (; i < count; ++i) finite &= (values[i] & exponent) != exponent;
  return finite;
}

bool is_stored_as(WeightType type, DType dtype) {
  return (dtype == DType::kBF16 && type == WeightType::kBF16) || (dtype == DType::kF16 && type == WeightType::kF16);
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
bool pack_row(const RawTensor& part, const std::byte* source, DType dtype, float* values, std::byte* out) {
  const int64_t k = part.cols();
  const bool is_float = dtype == DType::kF32;
  bool finite = true;
  auto* const halves = reinterpret_cast<uint16_t*>(out);
  if (is_stored_as(part.type, dtype)) {
    if (out != source) std::memcpy(out, source, part.row_bytes());
    return are_finite(dtype, halves, k);
  }
  float* const floats = is_float ? reinterpret_cast<float*>(out) : values;
  dequantize_row(part.type, source, k, floats);
  for (int64_t i = 0; i < k; ++i) finite &= is_finite_float(floats[i]);
  if (is_float) return finite;
  for (int64_t i = 0; i < k; ++i) halves[i] = dtype == DType::kF16 ? f32_to_f16(values[i]) : f32_to_bf16(values[i]);
  return finite && are_finite(dtype, halves, k);  // also what overflows in rounding
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
  weight->dtype = dtype_of(packing);
  const auto size = static_cast<int64_t>(size_of(weight->dtype)), per_load = 16 / size;
  weight->stride = (weight->k + per_load - 1) / per_load * per_load;
  const size_t row_bytes = static_cast<size_t>(weight->stride * size);
  try {
    weight->memory = DeviceMemory(static_cast<size_t>(weight->n) * row_bytes);
  } catch (const DeviceMemoryError& error) {
    throw Error(ErrorKind::kRuntime, "Not enough memory for the model's weights, at tensor " + weight->name + " (" +
                                         error.figures() +
                                         "). Use a smaller model, or end what else holds the device's memory.");
  }

  if (upload_ == nullptr) upload_ = std::make_unique<WeightUpload>(stream(), load_threads_);
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
    const bool as_stored = is_stored_as(part->type, weight->dtype) && part->row_bytes() == row_bytes;
    upload_->rows(part->rows(), row_bytes, target, [&](int64_t first, int64_t count, std::byte* out, int worker) {
      Scratch& scratch = scratches[static_cast<size_t>(worker)];
      scratch.values.resize(static_cast<size_t>(weight->k));
      if (!as_stored) scratch.stored.resize(static_cast<size_t>(count) * part->row_bytes());
      const std::byte* stored = as_stored ? out : scratch.stored.data();
      if (!copy_rows(*part, first, count, as_stored ? out : scratch.stored.data())) {
        read_error = errno;
        return;
      }
      if (as_stored && are_finite(weight->dtype, reinterpret_cast<const uint16_t*>(out), count * weight->k)) return;
      for (int64_t row = first; row < first + count; ++row, out += row_bytes, stored += part->row_bytes()) {
        std::memset(out + used, 0, row_bytes - used);
        if (!pack_row(*part, stored, weight->dtype, scratch.values.data(), out)) lower_to(bad_row, row);
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
                                         ": the file is damaged, or its weights overflow" +
                                         (weight->dtype == DType::kF16 ? " float16; use dtype='bfloat16'." : "."));
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
