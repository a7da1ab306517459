// plan(): where the step's tokens lie, and how attention's work is cut.
#include <algorithm>
#include <bit>

#include "base/check.h"
#include "ops/cpu/attention_unit.h"
#include "ops/cpu/step_plan.h"

namespace tokenmill {
namespace {

// Query rows (queries x heads of the group) a unit aims at: enough to make the KV tile's loads cheap, few enough that
// their state stays in the first caches.
constexpr int32_t kUnitRows = 64;
// Bound on the memory of split units' partial results.
constexpr int64_t kPartialFloatsMax = int64_t{16} << 20;

// Absolute position of the first key that the query at `position` sees.
int32_t first_visible(int32_t position, int32_t window) { return window > 0 ? std::max(0, position - window + 1) : 0; }

void add_units(const BatchRow& row, int32_t row_index, AttentionSchedule& schedule) {
  const int32_t group = schedule.q_heads / schedule.kv_heads;
  const int32_t queries_max = std::max(1, kUnitRows / group);
  for (int32_t first = 0; first < row.q_len; first += queries_max) {
    AttentionUnit unit;
    unit.row = row_index;
    unit.first_query = first;
    unit.num_queries = std::min(queries_max, row.q_len - first);
    const int32_t first_position = row.kv_len - row.q_len + first;
    const int32_t last_position = first_position + unit.num_queries - 1;
    const int32_t first_key = first_visible(first_position, schedule.window);
    unit.first_piece = first_key / kPieceKeys;
    unit.num_pieces = last_position / kPieceKeys - unit.first_piece + 1;
    const int64_t tiles = last_position / kTileKeys - first_key / kTileKeys + 1;
    // Reading a tile costs about as much as computing four rows on it.
    unit.cost = tiles * (unit.num_queries * group + 4) + 8;
    for (unit.kv_head = 0; unit.kv_head < schedule.kv_heads; ++unit.kv_head) schedule.units.push_back(unit);
  }
}

// Splits the units that would leave other threads idle; the arithmetic is the same either way.
void split_units(int32_t threads, AttentionSchedule& schedule) {
  int64_t total = 0;
  for (const AttentionUnit& unit : schedule.units) total += unit.cost;
  const int64_t cost_max = total / (4 * threads);
  const int32_t group = schedule.q_heads / schedule.kv_heads;
  const int32_t dims = KvLayout(schedule.kv_heads, schedule.head_dim, 1, DType::kF32).dims;
  for (size_t i = 0; i < schedule.units.size(); ++i) {
    AttentionUnit& unit = schedule.units[i];
    const int64_t floats = unit.num_pieces * partial_floats(unit.num_queries * group, dims);
    const bool split = threads > 1 && unit.num_pieces > 1 && unit.cost > cost_max &&
                       schedule.partial_floats + floats <= kPartialFloatsMax;
    if (!split) {
      schedule.items.push_back({static_cast<int32_t>(i), -1, unit.cost});
      continue;
    }
    unit.partial_begin = schedule.partial_floats;
    unit.counter = schedule.num_counters++;
    schedule.partial_floats += floats;
    for (int32_t piece = 0; piece < unit.num_pieces; ++piece) {
      schedule.items.push_back({static_cast<int32_t>(i), piece, unit.cost / unit.num_pieces});
    }
  }
  std::stable_sort(schedule.items.begin(), schedule.items.end(),
                   [](const AttentionItem& a, const AttentionItem& b) { return a.cost > b.cost; });
}

}  // namespace

void CpuBackend::plan(const Batch& batch, int32_t page_size) {
  TM_CHECK(page_size >= 1 && page_size <= 64 && std::has_single_bit(static_cast<uint32_t>(page_size)));
  StepPlan& plan = *plan_;
  plan.rows = batch.rows;
  plan.num_tokens = static_cast<int32_t>(batch.tokens.size());
  plan.page_shift = std::countr_zero(static_cast<uint32_t>(page_size));
  plan.num_schedules = 0;
  plan.token_offsets.assign(batch.tokens.size(), 0);
  TM_CHECK(batch.window_tables.empty() || batch.window_tables.size() == batch.block_tables.size());
  for (const BatchRow& row : plan.rows) {
    TM_CHECK(row.q_len >= 1 && row.kv_len >= row.q_len && row.token_begin >= 0 &&
             row.token_begin + row.q_len <= plan.num_tokens);
    TM_CHECK(row.block_begin >= 0 && int64_t{row.num_blocks} * page_size >= row.kv_len &&
             row.block_begin + static_cast<int64_t>(row.num_blocks) <= static_cast<int64_t>(batch.block_tables.size()));
    for (int32_t i = 0; i < row.q_len; ++i) {
      plan.token_offsets[static_cast<size_t>(row.token_begin + i)] = (row.kv_len - row.q_len + i) & (page_size - 1);
    }
  }
  for (const KvGroup which : {KvGroup::kFull, KvGroup::kWindow}) {
    StepPlan::Group& group = plan.groups[static_cast<size_t>(which)];
    group.block_tables = batch.tables(which);
    group.token_blocks.assign(group.block_tables.empty() ? 0 : batch.tokens.size(), -1);
    if (group.block_tables.empty()) continue;
    for (const BatchRow& row : plan.rows) {
      for (int32_t i = 0; i < row.q_len; ++i) {
        const int32_t position = row.kv_len - row.q_len + i;
        group.token_blocks[static_cast<size_t>(row.token_begin + i)] =
            group.block_tables[static_cast<size_t>(row.block_begin + (position >> plan.page_shift))];
      }
    }
    // Every token belongs to a row and has a block.
    for (const int32_t block : group.token_blocks) TM_CHECK(block >= 0);
  }
}

const AttentionSchedule& CpuBackend::StepPlan::schedule(const AttentionArgs& args, int32_t threads) {
  for (size_t i = 0; i < num_schedules; ++i) {
    const AttentionSchedule& known = schedules[i];
    if (known.q_heads == args.q_heads && known.kv_heads == args.kv.kv_heads && known.head_dim == args.kv.head_dim &&
        known.window == args.window) {
      return known;
    }
  }
  if (num_schedules == schedules.size()) schedules.emplace_back();
  AttentionSchedule& schedule = schedules[num_schedules++];
  schedule.q_heads = args.q_heads;
  schedule.kv_heads = args.kv.kv_heads;
  schedule.head_dim = args.kv.head_dim;
  schedule.window = args.window;
  schedule.units.clear();
  schedule.items.clear();
  schedule.partial_floats = 0;
  schedule.num_counters = 0;
  for (size_t i = 0; i < rows.size(); ++i) add_units(rows[i], static_cast<int32_t>(i), schedule);
  split_units(threads, schedule);
  if (schedule.num_counters > counters_size) {
    counters_size = std::max(schedule.num_counters, 2 * counters_size);
    counters = std::make_unique<std::atomic<int32_t>[]>(static_cast<size_t>(counters_size));
  }
  return schedule;
}

}  // namespace tokenmill
