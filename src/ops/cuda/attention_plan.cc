// plan(): the step's rows on the device, and how attention's work is cut.
#include <algorithm>
#include <bit>
#include <functional>
#include <utility>

#include "base/check.h"
#include "ops/cuda/step_plan.h"
#include "ops/cuda/tensor_attention.h"

namespace tokenmill {
namespace {

constexpr int64_t kSplitKeysMin = 64;
constexpr int64_t kSplitsMax = 64;
constexpr int64_t kTensorSplitKeysMin = 128;
// Sequences with at most this many query rows count as ones with few.
constexpr int64_t kFewRowsMax = 2 * kTensorFewRows;

// 8, 12, 16, 24, 32, 48 …
size_t schedule_size(size_t items) {
  size_t size = 8;
  while (size < items) size = std::has_single_bit(size) ? size / 2 * 3 : size / 3 * 4;
  return size;
}

}  // namespace

bool CudaBackend::StepPlan::has_few(const PlanRow& row, const CudaAttentionSchedule& schedule) const {
  return !one_split && int64_t{row.q_len} * schedule.group <= kFewRowsMax;
}

// Two blocks a multiprocessor, with three stages, or three with two; none of them with too few keys to be worth a
// merge; or a part of the keys of that, where more and shorter blocks come out more evenly. What a cut costs is its
// rounds of blocks, times those a multiprocessor has at once, times what one takes, in tiles.
CudaBackend::StepPlan::KeyCut CudaBackend::StepPlan::cut_keys(const CudaAttentionSchedule& schedule,
                                                              int num_sms) const {
  constexpr int64_t kBlockTiles = 3;  // what starting and merging a block costs
  int64_t keys_total = 0;
  for (const PlanRow& row : rows) {
    const int64_t units = (int64_t{row.q_len} * schedule.group + kTensorFewRows - 1) / kTensorFewRows;
    if (has_few(row, schedule)) keys_total += units * row.kv_len * schedule.kv_heads;
  }
  KeyCut best{};
  double best_cost = 0;
  // Blocks of a multiprocessor, and the stages that each then has room for.
  constexpr std::pair<int64_t, int> kRooms[] = {{2, 3}, {3, 2}};
  for (const auto& [together, stages] : kRooms) {
    const int64_t at_a_time = together * num_sms;
    for (int64_t part = 1; part <= 4; ++part) {
      // A sixteenth more, so that places left over do not cost each row another block.
      const int64_t wanted = keys_total / (part * at_a_time) * 17 / 16;
      const int64_t keys = std::max(kTensorSplitKeysMin, (wanted + kTensorTile - 1) / kTensorTile * kTensorTile);
      int64_t blocks = 0, tiles = 0;
      for (const PlanRow& row : rows) {
        if (!has_few(row, schedule)) continue;
        const int64_t units = (int64_t{row.q_len} * schedule.group + kTensorFewRows - 1) / kTensorFewRows;
        blocks += units * std::clamp<int64_t>((row.kv_len + keys - 1) / keys, 1, kSplitsMax) * schedule.kv_heads;
        tiles += units * ((row.kv_len + kTensorTile - 1) / kTensorTile) * schedule.kv_heads;
      }
      if (blocks == 0) return {keys, stages};
      const double a_block = static_cast<double>(tiles) / static_cast<double>(blocks) + kBlockTiles;
      const double cost = static_cast<double>((blocks + at_a_time - 1) / at_a_time * together) * a_block;
      if (best.stages == 0 || cost < 0.97 * best_cost) {
        best = {keys, stages};
        best_cost = cost;
      }
    }
  }
  return best;
}

void CudaBackend::StepPlan::fill_tensor(CudaAttentionSchedule& schedule, int num_sms) const {
  const auto is_few = [&](const PlanRow& row) { return has_few(row, schedule); };
  const auto [keys_per_block, stages] = cut_keys(schedule, num_sms);
  int64_t tiles_max = 1;
  schedule.few_rows_max = 1;
  for (size_t r = 0; r < rows.size(); ++r) {
    const PlanRow& row = rows[r];
    const int64_t total = int64_t{row.q_len} * schedule.group;
    const int32_t per_unit = is_few(row) ? kTensorFewRows : kTensorManyRows;
    const int64_t last_first = (total - 1) / per_unit * per_unit;
    if (is_few(row)) {
      schedule.few_rows_max = std::max(schedule.few_rows_max, static_cast<int32_t>(std::min<int64_t>(total, per_unit)));
    } else {
      schedule.many_keys += row.kv_len;
    }
    // The last queries see most keys: they start first.
    for (int64_t first = last_first; first >= 0; first -= per_unit) {
      CudaAttentionItem item{static_cast<int32_t>(r), static_cast<int32_t>(first), 0, 1, 0, 0};
      if (!is_few(row)) {
        schedule.many_items.push_back(item);
        continue;
      }
      const int64_t last = std::min(total, first + per_unit) - 1;
      const int64_t keys = row.kv_len - row.q_len + last / schedule.group + 1;
      const int64_t wanted = std::clamp<int64_t>((keys + keys_per_block - 1) / keys_per_block, 1, kSplitsMax);
      const int64_t tiles = ((keys + wanted - 1) / wanted + kTensorTile - 1) / kTensorTile;  // of a split
      const int64_t splits = (keys + tiles * kTensorTile - 1) / (tiles * kTensorTile);
      tiles_max = std::max(tiles_max, tiles);
      item.num_splits = static_cast<int32_t>(splits);
      item.unit = schedule.num_units++;
      item.partial = schedule.num_partials;
      for (; item.split < splits; ++item.split) schedule.items.push_back(item);
      if (splits > 1) schedule.num_partials += static_cast<int32_t>(splits);
    }
  }
  std::ranges::stable_sort(schedule.many_items, std::greater{}, [&](const CudaAttentionItem& item) {
    const PlanRow& row = rows[static_cast<size_t>(item.row)];
    return row.kv_len - row.q_len + item.first / schedule.group;
  });
  const int64_t blocks = static_cast<int64_t>(schedule.items.size()) * schedule.kv_heads;
  schedule.stages = static_cast<int32_t>(std::min<int64_t>(tiles_max, stages));
  schedule.two_tiles = tiles_max == 2 && blocks <= num_sms && schedule.few_rows_max <= 8;
}

void CudaBackend::StepPlan::fill_plain(CudaAttentionSchedule& schedule, int num_sms) const {
  int64_t rows_max = 0;
  for (const PlanRow& row : rows) rows_max = std::max(rows_max, int64_t{row.q_len} * schedule.group);
  schedule.rows_per_block = rows_max <= kPlainFewRows ? kPlainFewRows : schedule.plain_rows_max;
  int64_t keys_total = 0;
  for (const PlanRow& row : rows) {
    const int64_t units = (int64_t{row.q_len} * schedule.group + schedule.rows_per_block - 1) / schedule.rows_per_block;
    keys_total += units * (row.kv_len - row.q_len / 2) * schedule.kv_heads;
  }
  // About two blocks a multiprocessor, none of them with too few keys to be worth a merge.
  const int64_t keys_per_block = std::max(kSplitKeysMin, keys_total / (2 * num_sms));
  for (size_t r = 0; r < rows.size(); ++r) {
    const PlanRow& row = rows[r];
    const int64_t total = int64_t{row.q_len} * schedule.group;
    const int64_t last_first = (total - 1) / schedule.rows_per_block * schedule.rows_per_block;
    // The last queries see most keys: they start first.
    for (int64_t first = last_first; first >= 0; first -= schedule.rows_per_block) {
      const int64_t last = std::min(total, first + schedule.rows_per_block) - 1;
      const int64_t keys = row.kv_len - row.q_len + last / schedule.group + 1;
      const int64_t splits =
          one_split ? 1 : std::clamp<int64_t>((keys + keys_per_block - 1) / keys_per_block, 1, kSplitsMax);
      CudaAttentionItem item{static_cast<int32_t>(r),      static_cast<int32_t>(first), 0,
                             static_cast<int32_t>(splits), schedule.num_units++,        schedule.num_partials};
      for (; item.split < splits; ++item.split) schedule.items.push_back(item);
      if (splits > 1) schedule.num_partials += static_cast<int32_t>(splits);
    }
  }
}

void CudaBackend::StepPlan::fill(CudaAttentionSchedule& schedule, int num_sms) const {
  schedule.items.clear();
  schedule.many_items.clear();
  schedule.many_keys = 0;
  schedule.num_units = schedule.num_partials = 0;
  if (schedule.tensor) {
    fill_tensor(schedule, num_sms);
  } else {
    fill_plain(schedule, num_sms);
  }
  if (!decode_only || (schedule.tensor && one_split)) return;  // there as many items as rows
  const size_t size = schedule_size(schedule.items.size());
  schedule.items.resize(size, CudaAttentionItem{});
  schedule.num_units = schedule.num_partials = static_cast<int32_t>(size);
}

uint64_t CudaBackend::StepPlan::shape() const {
  uint64_t shape = 0;
  for (const CudaAttentionSchedule& schedule : schedules) {
    const uint64_t kernel = 2 * static_cast<uint64_t>(schedule.stages) + (schedule.two_tiles ? 1 : 0);
    shape = (shape * 65537 + schedule.items.size()) * 8 + kernel;
  }
  return shape;
}

const CudaAttentionSchedule& CudaBackend::StepPlan::schedule(int32_t group, int32_t kv_heads, bool tensor,
                                                             int32_t plain_rows_max, int num_sms, cudaStream_t stream) {
  for (const CudaAttentionSchedule& known : schedules) {
    if (known.group == group && known.kv_heads == kv_heads && known.tensor == tensor &&
        known.plain_rows_max == plain_rows_max) {
      return known;
    }
  }
  CudaAttentionSchedule& schedule = schedules.emplace_back();
  schedule.group = group;
  schedule.kv_heads = kv_heads;
  schedule.tensor = tensor;
  schedule.plain_rows_max = plain_rows_max;
  fill(schedule, num_sms);
  // All schedules anew, so that those sent so keep their place.
  late_upload.begin();
  const std::vector<size_t> offsets = add_items(late_upload);
  late_upload.send(stream);
  set_items(late_upload, offsets);
  return schedule;
}

std::vector<size_t> CudaBackend::StepPlan::add_items(PackedUpload& to) const {
  std::vector<size_t> offsets;
  for (const CudaAttentionSchedule& schedule : schedules) {
    offsets.push_back(to.add(std::span<const CudaAttentionItem>(schedule.items)));
    offsets.push_back(to.add(std::span<const CudaAttentionItem>(schedule.many_items)));
  }
  return offsets;
}

void CudaBackend::StepPlan::set_items(const PackedUpload& from, std::span<const size_t> offsets) {
  for (size_t i = 0; i < schedules.size(); ++i) {
    schedules[i].device_items = from.at<CudaAttentionItem>(offsets[2 * i]);
    schedules[i].device_many_items = from.at<CudaAttentionItem>(offsets[2 * i + 1]);
  }
}

void CudaBackend::plan(const Batch& batch, int32_t page_size) {
  TM_CHECK(page_size >= 1 && page_size <= 64 && std::has_single_bit(static_cast<uint32_t>(page_size)));
  TM_CHECK(batch.positions.size() == batch.tokens.size());
  use_device();
  upload_.reset();           // threads and pinned memory that only loading needs
  pending_queries_.reset();  // of a step that failed between the two
  StepPlan& plan = *plan_;
  plan.num_tokens = static_cast<int32_t>(batch.tokens.size());
  plan.page_shift = std::countr_zero(static_cast<uint32_t>(page_size));
  plan.decode_only = batch.tokens.size() == batch.rows.size();
  plan.batch_tokens = batch.tokens.data();
  plan.batch_positions = batch.positions.data();
  plan.tokens = batch.tokens;
  plan.positions = batch.positions;
  plan.sampled.clear();
  for (const SamplingRow& row : batch.sampling) plan.sampled.push_back(row.token_index);
  plan.rows.clear();
  plan.window_rows.clear();
  const bool has_window = !batch.window_tables.empty();
  TM_CHECK(!has_window || batch.window_tables.size() == batch.block_tables.size());
  const auto window_begin = static_cast<int32_t>(batch.block_tables.size());
  plan.slots.assign(batch.tokens.size(), -1);
  plan.window_slots.assign(has_window ? batch.tokens.size() : 0, -1);
  const auto slot = [&](const std::vector<int32_t>& tables, const BatchRow& row, int32_t position) {
    const int32_t block = tables[static_cast<size_t>(row.block_begin + position / page_size)];
    TM_CHECK(block >= 0 && block < (INT32_MAX >> plan.page_shift));
    return block * page_size + position % page_size;
  };
  for (const BatchRow& row : batch.rows) {
    TM_CHECK(row.q_len >= 1 && row.kv_len >= row.q_len && row.token_begin >= 0 &&
             row.token_begin + row.q_len <= plan.num_tokens);
    TM_CHECK(row.block_begin >= 0 && int64_t{row.num_blocks} * page_size >= row.kv_len &&
             row.block_begin + static_cast<int64_t>(row.num_blocks) <= static_cast<int64_t>(batch.block_tables.size()));
    plan.rows.push_back({row.q_len, row.kv_len, row.token_begin, row.block_begin});
    if (has_window) {  // its tables follow the others
      plan.window_rows.push_back({row.q_len, row.kv_len, row.token_begin, window_begin + row.block_begin});
    }
    for (int32_t i = 0; i < row.q_len; ++i) {
      const int32_t position = row.kv_len - row.q_len + i;
      const auto token = static_cast<size_t>(row.token_begin + i);
      plan.slots[token] = slot(batch.block_tables, row, position);
      if (has_window) plan.window_slots[token] = slot(batch.window_tables, row, position);
    }
  }
  for (const int32_t slot : plan.slots) TM_CHECK(slot >= 0);  // every token belongs to a row

  PackedUpload& upload = plan.upload;
  upload.begin();
  const size_t tokens = upload.add(std::span<const int32_t>(plan.tokens));
  const size_t positions = upload.add(std::span<const int32_t>(plan.positions));
  const size_t sampled = upload.add(std::span<const int32_t>(plan.sampled));
  const size_t slots = upload.add(std::span<const int32_t>(plan.slots));
  const size_t rows = upload.add(std::span<const PlanRow>(plan.rows));
  const size_t window_slots = upload.add(std::span<const int32_t>(plan.window_slots));
  const size_t window_rows = upload.add(std::span<const PlanRow>(plan.window_rows));
  for (CudaAttentionSchedule& schedule : plan.schedules) plan.fill(schedule, num_sms_);
  const std::vector<size_t> items = plan.add_items(upload);
  // Last: all the others have their place whatever the lengths of the sequences.
  plan.tables = batch.block_tables;
  plan.tables.insert(plan.tables.end(), batch.window_tables.begin(), batch.window_tables.end());
  const size_t tables = upload.add(std::span<const int32_t>(plan.tables));
  plan.slot_tokens = batch.slot_tokens;
  plan.slot_tokens.resize(batch.rows.size());  // the same room with slots and without: none is taken later
  const size_t slot_tokens = upload.add(std::span<const SlotToken>(plan.slot_tokens));
  upload.send(stream());
  plan.device_tokens = upload.at<int32_t>(tokens);
  plan.device_positions = upload.at<int32_t>(positions);
  plan.device_sampled = upload.at<int32_t>(sampled);
  plan.device_slots[0] = upload.at<int32_t>(slots);
  plan.device_slots[1] = has_window ? upload.at<int32_t>(window_slots) : nullptr;
  plan.device_tables = upload.at<int32_t>(tables);
  plan.device_rows[0] = upload.at<PlanRow>(rows);
  plan.device_rows[1] = has_window ? upload.at<PlanRow>(window_rows) : nullptr;
  plan.set_items(upload, items);
  plan.takes_slots = !batch.slot_tokens.empty();
  if (plan.takes_slots) {
    take_slot_tokens(batch.slot_tokens, upload.at<SlotToken>(slot_tokens), upload.mutable_at<int32_t>(tokens));
  }
}

}  // namespace tokenmill
