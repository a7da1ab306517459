// attention(): hands the step's units to the workers.
#include "base/check.h"
#include "ops/cpu/attention_unit.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/step_plan.h"

namespace tokenmill {

void CpuBackend::attention(const AttentionArgs& args) {
  StepPlan& plan = *plan_;
  const KvLayout layout(args.kv);
  TM_CHECK(args.kv.dtype == DType::kF32 || args.kv.dtype == DType::kBF16);
  TM_CHECK(layout.head_dim % 2 == 0 && layout.head_dim >= 2 && layout.head_dim <= 256);
  TM_CHECK(layout.kv_heads >= 1 && args.q_heads % layout.kv_heads == 0);
  const StepPlan::Group& group_plan = plan.group(args.kv);
  const int32_t* const tables = group_plan.block_tables.data();
  TM_CHECK(static_cast<int32_t>(group_plan.token_blocks.size()) == plan.num_tokens);  // the batch has such a table
  TM_CHECK(args.kv.page_size == 1 << plan.page_shift && args.kv.block_bytes >= layout.block_bytes());
  TM_CHECK(args.q.rows == plan.num_tokens && args.q.cols >= int64_t{args.q_heads} * layout.head_dim);
  TM_CHECK(args.out.rows == plan.num_tokens && args.out.cols >= int64_t{args.q_heads} * layout.head_dim);

  const AttentionSchedule& schedule = plan.schedule(args, num_threads());
  const AttentionKernels& kernels =
      isa_ == Isa::kAvx2 ? attention_kernels_avx2(args.kv.dtype) : attention_kernels_avx512(args.kv.dtype);
  const int32_t group = args.q_heads / layout.kv_heads;
  const size_t scratch_bytes = unit_scratch_bytes(layout, group, schedule);
  for (int worker = 0; worker < num_threads(); ++worker) worker_scratch(worker, scratch_bytes);
  float* const partials =
      reinterpret_cast<float*>(shared_scratch(static_cast<size_t>(schedule.partial_floats) * sizeof(float)));
  for (const AttentionUnit& unit : schedule.units) {
    if (unit.counter >= 0) plan.counters[static_cast<size_t>(unit.counter)].store(unit.num_pieces);
  }

  pool_.parallel_for(static_cast<int64_t>(schedule.items.size()), [&](int64_t index, int worker) {
    const AttentionItem& item = schedule.items[static_cast<size_t>(index)];
    const AttentionUnit& unit = schedule.units[static_cast<size_t>(item.unit)];
    const BatchRow& row = plan.rows[static_cast<size_t>(unit.row)];
    const UnitContext context = {
        args, layout, kernels, row, tables + row.block_begin, unit, worker_scratch(worker, scratch_bytes)};
    if (item.piece < 0) return attend_unit(context);

    // A split unit: each piece has its own state, and whoever ends the last one merges them in ascending order.
    const int32_t rows = unit.num_queries * group;
    const int64_t floats = partial_floats(rows, layout.dims);
    const auto state = [&](int32_t piece) {
      return state_at(partials + unit.partial_begin + piece * floats, rows, layout.dims);
    };
    load_queries(context);
    attend_piece(context, unit.first_piece + item.piece, state(item.piece));
    if (plan.counters[static_cast<size_t>(unit.counter)].fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    for (int32_t piece = 1; piece < unit.num_pieces; ++piece) {
      merge_piece(rows, layout.dims, state(piece), state(0));
    }
    write_out(context, state(0));
  });
}

}  // namespace tokenmill
