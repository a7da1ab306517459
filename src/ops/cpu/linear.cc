// Backend::linear and gated_linear: packs the inputs once, then lets the workers claim pieces of the product.
#include "ops/cpu/linear.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/float_mode.h"

namespace tokenmill {
namespace {

// A piece's weights stay in the second-level cache while the rows pass by; small pieces keep the workers level.
constexpr int64_t kPieceWeightBytes = 256 * 1024;
constexpr int64_t kStreamPieceWeightBytes = 128 * 1024;
constexpr int64_t kStreamRows = 3;
constexpr int64_t kStreams = 4;          // tiles that the vector kernels read side by side: no smaller piece
constexpr int64_t kPieceRows = 96;       // rows of one piece of a large product
constexpr int64_t kPieceTilesMax = 16;   // bounds a piece's results
constexpr int64_t kInlineInputs = 8192;  // so many input values are packed by the caller alone: a join costs more

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

size_t padded_stride(size_t bytes) {
  const size_t lines = (bytes + 63) / 64;
  return (lines | 1) * 64;
}

struct Needs {
  bool float32 = false, bfloat16 = false, int8 = false;
};

void add_needs(const PackedWeight& weight, Needs& needs) {
  for (const WeightSegment& segment : weight.segments) {
    needs.float32 |= segment.kind == SegmentKind::kFloat32;
    needs.bfloat16 |= segment.kind == SegmentKind::kBFloat16;
    needs.int8 |= segment.kind == SegmentKind::kQuantized;
  }
}

// How the product's [rows, tiles] is cut. Pieces are numbered segment by segment, tiles outermost, so that the workers
// share a stretch of weights.
struct Pieces {
  struct PerSegment {
    int64_t tiles_per_piece = 0, count = 0;
  };
  static constexpr size_t kSegmentsMax = 8;
  PerSegment segments[kSegmentsMax];
  int64_t rows = 0, rows_per_piece = 0, row_pieces = 0, result_rows = 0, count = 0;

  Pieces(const PackedWeight& weight, const LinearInputs& inputs, int threads) : rows(inputs.rows) {
    TM_CHECK(weight.segments.size() <= kSegmentsMax);
    row_pieces = ceil_div(rows, kPieceRows);
    rows_per_piece = ceil_div(rows, row_pieces);
    // Whole groups of quantised rows, whole pairs of tiles otherwise.
    const int64_t group = inputs.fine ? std::lcm<int64_t>(inputs.int8_group, 2) : inputs.int8_group;
    const int64_t multiple = inputs.int8 != nullptr && inputs.int8_group != 16 ? group : 32;
    if (row_pieces > 1) rows_per_piece = ceil_div(rows_per_piece, multiple) * multiple;
    row_pieces = ceil_div(rows, rows_per_piece);
    result_rows = ceil_div(rows_per_piece, 32) * 32;  // the tile unit stores whole tiles
    const int64_t wanted_bytes = rows <= kStreamRows ? kStreamPieceWeightBytes : kPieceWeightBytes;
    for (size_t i = 0; i < weight.segments.size(); ++i) {
      const WeightSegment& segment = weight.segments[i];
      const int64_t tiles = segment.tiles();
      int64_t per_piece =
          std::clamp<int64_t>(wanted_bytes / static_cast<int64_t>(segment.tile_bytes), kStreams, kPieceTilesMax);
      if (per_piece > 4) per_piece = per_piece / 4 * 4;
      // At least four pieces a worker where there are tiles enough for pieces of four streams.
      const int64_t fair = tiles / (4 * threads);
      if (fair < per_piece) per_piece = std::min(per_piece, std::max<int64_t>(4, fair / 4 * 4));
      segments[i] = {per_piece, ceil_div(tiles, per_piece) * row_pieces};
      count += segments[i].count;
    }
  }

  TileJob job(const PackedWeight& weight, int64_t piece) const {
    size_t i = 0;
    for (; piece >= segments[i].count; ++i) piece -= segments[i].count;
    TileJob job;
    job.segment = &weight.segments[i];
    job.tile_begin = piece / row_pieces * segments[i].tiles_per_piece;
    job.tile_end = std::min(job.tile_begin + segments[i].tiles_per_piece, job.segment->tiles());
    job.row_begin = piece % row_pieces * rows_per_piece;
    job.row_end = std::min(job.row_begin + rows_per_piece, rows);
    return job;
  }
};

void run_job(const LinearKernels& kernels, const TileJob& job) {
  switch (job.segment->kind) {
    case SegmentKind::kFloat32:
      return kernels.float32(job);
    case SegmentKind::kBFloat16:
      return kernels.bfloat16(job);
    case SegmentKind::kQuantized:
      return kernels.quantized(job);
  }
}

// Columns of the output that a job computes.
struct Columns {
  int64_t begin, count;
};
Columns columns_of(const TileJob& job) {
  const WeightSegment& segment = *job.segment;
  const int64_t end = std::min(job.tile_end * kTileRows, segment.rows);
  return {segment.row_begin + job.tile_begin * kTileRows, end - job.tile_begin * kTileRows};
}

// The two results of each fine row become one, and the job's rows those of x.
void join_fine_rows(TileJob& job) {
  const int64_t rows = (job.row_end - job.row_begin) / 2;
  for (int64_t row = 0; row < rows; ++row) {
    float* const sum = job.c + row * job.c_stride;
    const float* const first = job.c + 2 * row * job.c_stride;
    const float* const second = first + job.c_stride;
    for (int64_t i = 0; i < job.c_stride; ++i) sum[i] = first[i] + second[i];
  }
  job.row_begin /= 2;
  job.row_end = job.row_begin + rows;
}

void add_bias(const TileJob& job, const std::vector<float>& bias) {
  if (bias.empty()) return;
  const Columns columns = columns_of(job);
  const float* const b = bias.data() + columns.begin;
  for (int64_t row = 0; row < job.row_end - job.row_begin; ++row) {
    float* const c = job.c + row * job.c_stride;
    for (int64_t i = 0; i < columns.count; ++i) c[i] += b[i];
  }
}

void write_out(const TileJob& job, bool add_to_out, Matrix out) {
  const Columns columns = columns_of(job);
  for (int64_t row = job.row_begin; row < job.row_end; ++row) {
    const float* const c = job.c + (row - job.row_begin) * job.c_stride;
    float* const target = out.row<float>(row) + columns.begin;
    if (add_to_out) {
      for (int64_t i = 0; i < columns.count; ++i) target[i] += c[i];
    } else {
      std::copy(c, c + columns.count, target);
    }
  }
}

}  // namespace

const LinearKernels& linear_kernels(Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return linear_kernels_avx2();
    case Isa::kAvx512:
      return linear_kernels_avx512();
    case Isa::kAmx:
      return linear_kernels_amx();
  }
  TM_CHECK(!"a known instruction set");
  return linear_kernels_avx2();
}

namespace {

// Fills `inputs` in the backend's shared scratch.
LinearInputs pack_inputs(CpuBackend& backend, const LinearKernels& kernels, Matrix x, const Norm* norm, Needs needs,
                         bool fine = false) {
  LinearInputs inputs;
  inputs.fine = fine;
  inputs.rows = fine ? 2 * x.rows : x.rows;
  inputs.k = x.cols;
  const size_t rows = static_cast<size_t>(x.rows);
  const size_t padded_k = static_cast<size_t>(inputs.chunks() * kChunkValues);
  const bool tiles = kernels.tile_rows_min > 0 && x.rows >= kernels.tile_rows_min;
  inputs.float32_stride = padded_stride(static_cast<size_t>(x.cols) * 4);
  inputs.rounded_stride = padded_stride(padded_k * 4);
  inputs.bfloat16_stride = padded_stride(padded_k * 2);
  inputs.int8_group = kernels.quantized_group(inputs.rows);
  const size_t int8_rows = static_cast<size_t>(ceil_div(inputs.rows, inputs.int8_group) * inputs.int8_group);
  const size_t float32_bytes = needs.float32 ? rows * inputs.float32_stride : 0;
  const size_t rounded_bytes = needs.bfloat16 && !tiles ? rows * inputs.rounded_stride : 0;
  // Tile loads read whole pairs of tiles of 16 rows.
  const size_t bfloat16_bytes = needs.bfloat16 && tiles ? (rows + 31) * inputs.bfloat16_stride : 0;
  const size_t int8_bytes = needs.int8 ? int8_rows * static_cast<size_t>(inputs.chunks()) * sizeof(Int8Record) : 0;
  std::byte* next = backend.shared_scratch(float32_bytes + rounded_bytes + bfloat16_bytes + int8_bytes);
  const auto take = [&next](size_t bytes) {
    std::byte* const taken = bytes > 0 ? next : nullptr;
    next += bytes;
    return taken;
  };
  inputs.float32 = take(float32_bytes);
  inputs.rounded = take(rounded_bytes);
  inputs.bfloat16 = take(bfloat16_bytes);
  inputs.int8 = take(int8_bytes);

  const size_t row_bytes = static_cast<size_t>(x.cols) * sizeof(float);
  if (x.rows * x.cols <= kInlineInputs || x.rows == 1) {
    float* const scratch = reinterpret_cast<float*>(backend.worker_scratch(0, row_bytes));
    for (int64_t i = 0; i < x.rows; ++i) pack_input_row(x.row<float>(i), norm, i, inputs, scratch);
    return inputs;
  }
  const int64_t rows_per_piece = std::max<int64_t>(1, std::min(kInlineInputs / x.cols, x.rows / backend.num_threads()));
  backend.pool().parallel_for(ceil_div(x.rows, rows_per_piece), [&](int64_t piece, int worker) {
    float* const scratch = reinterpret_cast<float*>(backend.worker_scratch(worker, row_bytes));
    const int64_t end = std::min(x.rows, (piece + 1) * rows_per_piece);
    for (int64_t i = piece * rows_per_piece; i < end; ++i) {
      pack_input_row(x.row<float>(i), norm, i, inputs, scratch);
    }
  });
  return inputs;
}

}  // namespace

void CpuBackend::linear(const LinearArgs& args) {
  TM_CHECK(args.weight != nullptr);
  const auto& weight = static_cast<const PackedWeight&>(*args.weight);
  TM_CHECK(args.x.cols == weight.k && args.out.cols == weight.n && args.x.rows == args.out.rows);
  TM_CHECK(args.x.dtype == DType::kF32 && args.out.dtype == DType::kF32);
  if (args.x.rows == 0) return;
  const FloatModeScope mode;
  const LinearKernels& kernels = linear_kernels(isa_);
  Needs needs;
  add_needs(weight, needs);
  const bool fine = args.fine_inputs && needs.int8 && !needs.float32 && !needs.bfloat16;
  const LinearInputs inputs = pack_inputs(*this, kernels, args.x, args.input_norm, needs, fine);
  const Pieces pieces(weight, inputs, num_threads());
  const size_t scratch_bytes = linear_scratch_bytes(weight.k);
  const size_t c_bytes = static_cast<size_t>(pieces.result_rows * kPieceTilesMax * kTileRows) * sizeof(float);
  pool_.parallel_for(pieces.count, [&](int64_t piece, int worker) {
    TileJob job = pieces.job(weight, piece);
    std::byte* const scratch = worker_scratch(worker, scratch_bytes + c_bytes);
    job.inputs = &inputs;
    job.c = reinterpret_cast<float*>(scratch);
    job.c_stride = (job.tile_end - job.tile_begin) * kTileRows;
    job.scratch = scratch + c_bytes;
    run_job(kernels, job);
    if (fine) join_fine_rows(job);
    add_bias(job, weight.bias);
    write_out(job, args.add_to_out, args.out);
  });
}

void CpuBackend::gated_linear(const GatedLinearArgs& args) {
  TM_CHECK(args.gate != nullptr && args.up != nullptr);
  const auto& gate = static_cast<const PackedWeight&>(*args.gate);
  const auto& up = static_cast<const PackedWeight&>(*args.up);
  TM_CHECK(gate.n == up.n && gate.k == up.k);
  TM_CHECK(args.x.cols == gate.k && args.out.cols == gate.n && args.x.rows == args.out.rows);
  // One range of columns is one range of tiles in both.
  TM_CHECK(gate.segments.size() == 1 && up.segments.size() == 1);
  TM_CHECK(args.x.dtype == DType::kF32 && args.out.dtype == DType::kF32);
  if (args.x.rows == 0) return;
  const FloatModeScope mode;
  const LinearKernels& kernels = linear_kernels(isa_);
  Needs needs;
  add_needs(gate, needs);
  add_needs(up, needs);
  const LinearInputs inputs = pack_inputs(*this, kernels, args.x, args.input_norm, needs);
  const Pieces pieces(gate, inputs, num_threads());
  const size_t scratch_bytes = linear_scratch_bytes(gate.k);
  const size_t c_bytes = static_cast<size_t>(pieces.result_rows * kPieceTilesMax * kTileRows) * sizeof(float);
  pool_.parallel_for(pieces.count, [&](int64_t piece, int worker) {
    TileJob job = pieces.job(gate, piece);
    std::byte* const scratch = worker_scratch(worker, scratch_bytes + 2 * c_bytes);
    job.inputs = &inputs;
    job.c_stride = (job.tile_end - job.tile_begin) * kTileRows;
    job.scratch = scratch + 2 * c_bytes;
    TileJob up_job = job;
    job.c = reinterpret_cast<float*>(scratch);
    up_job.c = reinterpret_cast<float*>(scratch + c_bytes);
    up_job.segment = &up.segments[0];
    run_job(kernels, job);
    run_job(kernels, up_job);
    add_bias(job, gate.bias);
    add_bias(up_job, up.bias);
    kernels.gate(job.c, up_job.c, (job.row_end - job.row_begin) * job.c_stride, args.activation);
    write_out(job, /*add_to_out=*/false, args.out);
  });
}

}  // namespace tokenmill
