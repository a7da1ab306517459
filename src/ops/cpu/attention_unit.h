// Paged attention of one unit of query rows over the keys they see: an online softmax over absolute tiles of 32 keys
// (arXiv:2205.14135), in pieces of 512 keys at absolute multiples whose results are merged in ascending order.
//
//   position  0        32        64                 512                1024
//   tiles     |---------|---------|--- ... ---------|--------- ... -----|
//   pieces    [              piece 0                )[     piece 1      )...
//
// Tiles, pieces and their order depend on nothing but absolute positions, so a row's bits are the same at every
// page_size, chunking, batch and number of threads.
#pragma once

#include <cstdint>

#include "ops/cpu/attention_kernels.h"
#include "ops/cpu/step_plan.h"

namespace tokenmill {

inline constexpr int32_t kPieceKeys = 512;

// State of the online softmax of `rows` query rows: out [rows, dims] not yet divided by sum.
struct SoftmaxState {
  float* maximum = nullptr;
  float* sum = nullptr;
  float* out = nullptr;
};

// Rows rounded up, with room for the kernels' loads past the end.
constexpr int64_t padded_rows(int64_t rows) { return (rows + 15) / 16 * 16 + 16; }
// Floats of one SoftmaxState.
constexpr int64_t partial_floats(int64_t rows, int64_t dims) { return 2 * padded_rows(rows) + rows * dims; }
SoftmaxState state_at(float* memory, int64_t rows, int64_t dims);

struct UnitContext {
  const AttentionArgs& args;
  const KvLayout& layout;
  const AttentionKernels& kernels;
  const BatchRow& row;
  const int32_t* blocks;  // the row's block table
  const AttentionUnit& unit;
  std::byte* scratch;  // unit_scratch_bytes(...) of the worker
};

size_t unit_scratch_bytes(const KvLayout& layout, int32_t group, const AttentionSchedule& schedule);

// Computes one piece (an index from unit.first_piece on) from an empty state.
void attend_piece(const UnitContext& context, int32_t piece, const SoftmaxState& state);
// Loads the unit's queries into scratch; before attend_piece.
void load_queries(const UnitContext& context);
// total = total merged with piece; a row that saw no key of a piece has maximum -inf there.
void merge_piece(int32_t rows, int32_t dims, const SoftmaxState& piece, const SoftmaxState& total);
// Divides by the sums and writes the unit's rows of args.out.
void write_out(const UnitContext& context, const SoftmaxState& state);
// All pieces of the unit, one after the other, and write_out.
void attend_unit(const UnitContext& context);

}  // namespace tokenmill
