#include "scenarios/simulation.h"

#include <algorithm>
#include <utility>

namespace tokenmill::testing {

void SimulationCounts::add(const SimulationCounts& other) {
  steps += other.steps;
  finished += other.finished;
  aborted += other.aborted;
  failed_steps += other.failed_steps;
  retractions += other.retractions;
  preemptions += other.preemptions;
  evictions += other.evictions;
  copies += other.copies;
  cached_tokens += other.cached_tokens;
  too_large += other.too_large;
  mixed_steps += other.mixed_steps;
  timeouts += other.timeouts;
  failed_acquires += other.failed_acquires;
  pins += other.pins;
  pins_refused += other.pins_refused;
  window_evictions += other.window_evictions;
  ahead_steps += other.ahead_steps;
  wasted_rows += other.wasted_rows;
}

Simulation::Simulation(const SimulationOptions& options) : options_(options), random_(options.seed) {
  draw_options();
  script_.options = config_;
  script_.vocab_size = vocab_size_;
  device_ = std::make_unique<ShadowDevice>(config_.num_blocks, config_.page_size, vocab_size_, config_.window,
                                           config_.window_blocks);
  if (options_.make_witness) witness_ = options_.make_witness(config_);
  scheduler_ = std::make_unique<Scheduler>(config_);
}

int64_t Simulation::draw(int64_t low, int64_t high) {
  return low + static_cast<int64_t>(random_() % static_cast<uint64_t>(high - low + 1));
}

bool Simulation::chance(double probability) { return static_cast<double>(random_() >> 11) * 0x1p-53 < probability; }

void Simulation::fail(const std::string& what) const {
  throw Violation("seed " + std::to_string(options_.seed) + ", step " + std::to_string(counts_.steps) + ": " + what);
}

void Simulation::draw_options() {
  static constexpr SchedulePolicy kPolicies[] = {SchedulePolicy::kLpm,       SchedulePolicy::kFcfs,
                                                 SchedulePolicy::kDfsWeight, SchedulePolicy::kLof,
                                                 SchedulePolicy::kRandom,    SchedulePolicy::kPriority};
  config_.page_size = 1 << draw(0, 6);
  if (chance(0.3)) config_.page_size = 1 << draw(0, 2);  // the small ones find more
  const int64_t pool_tokens = draw(40, chance(0.5) ? 300 : 1500);
  config_.num_blocks = static_cast<int32_t>(std::max<int64_t>(4, pool_tokens / config_.page_size));
  config_.context_length = 1 << 20;
  config_.max_running_requests = chance(0.2) ? draw(1, 3) : draw(4, 24);
  config_.max_prefill_tokens = chance(0.5) ? 16384 : draw(8, 200);
  config_.chunked_prefill_size = chance(0.2) ? -1 : draw(1, chance(0.5) ? 20 : 120);
  config_.enable_mixed_chunk = chance(0.6);
  config_.policy = chance(0.4) ? SchedulePolicy::kLpm : kPolicies[draw(0, 5)];
  config_.schedule_conservativeness = chance(0.3) ? 1.0 : 0.02;  // optimistic: retracts more
  config_.disable_radix_cache = chance(0.05);
  static constexpr EvictionPolicy kEvictions[] = {EvictionPolicy::kLru, EvictionPolicy::kLfu, EvictionPolicy::kFifo};
  config_.eviction = kEvictions[draw(0, 2)];
  // A step takes a second of the world's own clock.
  config_.now_seconds = [this] { return clock_; };
  if (chance(0.07)) config_.waiting_timeout_seconds = static_cast<double>(draw(5, 60));
  if (chance(0.1)) config_.running_timeout_seconds = static_cast<double>(draw(5, 60));
  if (chance(0.3)) {
    config_.fail_acquire = [this] {
      const bool fails = chance(0.03);
      acquire_failed_ |= fails;
      if (fails) script_.ops.back().numbers.push_back(acquires_);
      ++acquires_;
      counts_.failed_acquires += fails;
      return fails;
    };
  }
  pin_probability_ = chance(0.8) || config_.disable_radix_cache ? 0.0 : 0.15;
  config_.overtake_max = draw(0, 20);
  config_.random_seed = random_() >> 11;  // a script holds it as a double
  vocab_size_ = static_cast<int32_t>(chance(0.3) ? 3 : draw(10, 1000));
  add_probability_ = chance(0.5) ? 0.15 : 0.5;
  abort_probability_ = chance(0.5) ? 0.0 : 0.05;
  fail_probability_ = chance(0.5) ? 0.0 : 0.02;
  invalid_probability_ = chance(0.7) ? 0.0 : 0.005;
  const int64_t capacity = static_cast<int64_t>(config_.num_blocks) * config_.page_size;
  if (chance(0.5)) {
    config_.window = static_cast<int32_t>(draw(1, chance(0.5) ? 12 : 100));
    const int64_t least = (config_.window + config_.page_size - 1) / config_.page_size + 2;
    // From what one sequence needs to as much as the others.
    config_.window_blocks = static_cast<int32_t>(draw(least, std::max<int64_t>(least, config_.num_blocks)));
  }
  prompt_max_ = std::max<int64_t>(4, capacity / draw(2, 6));
  if (chance(0.1)) prompt_max_ = capacity + 10;  // some can never fit
  new_max_ = std::max<int64_t>(2, capacity / draw(2, 8));
  for (int64_t family = draw(1, 4); family > 0; --family) {
    std::vector<int32_t> prefix(draw(1, prompt_max_));
    for (int32_t& token : prefix) token = static_cast<int32_t>(draw(0, vocab_size_ - 1));
    families_.push_back(prefix);
  }
}

std::vector<int32_t> Simulation::draw_prompt() {
  std::vector<int32_t> prompt;
  if (!history_.empty() && chance(0.3)) {
    prompt = history_[draw(0, static_cast<int64_t>(history_.size()) - 1)];
  } else if (chance(0.8)) {
    prompt = families_[draw(0, static_cast<int64_t>(families_.size()) - 1)];
  }
  if (chance(0.6)) prompt.resize(draw(0, static_cast<int64_t>(prompt.size())));
  for (int64_t more = chance(0.2) ? 0 : draw(0, prompt_max_ / 2); more > 0; --more) {
    prompt.push_back(static_cast<int32_t>(draw(0, vocab_size_ - 1)));
  }
  if (static_cast<int64_t>(prompt.size()) > prompt_max_) prompt.resize(prompt_max_);
  if (prompt.empty()) prompt.push_back(0);
  return prompt;
}

SequenceSpec Simulation::draw_spec() {
  SequenceSpec spec;
  spec.prompt = std::make_shared<std::vector<int32_t>>(draw_prompt());
  spec.max_new_tokens = chance(0.05) ? 0 : draw(1, new_max_);
  spec.min_new_tokens = chance(0.7) ? 0 : draw(0, spec.max_new_tokens);
  spec.seed = random_() % 3;
  spec.priority = draw(0, 3);
  if (chance(0.1)) spec.cache_namespace = "other";
  auto draw_ids = [&](int64_t n) {
    std::vector<int32_t> ids;
    for (; n > 0; --n) ids.push_back(static_cast<int32_t>(draw(0, vocab_size_ - 1)));
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    return ids;
  };
  if (chance(0.3)) spec.stop_ids = draw_ids(vocab_size_ < 10 ? 1 : 3);
  if (vocab_size_ >= 10) {  // enough ids that never all are banned
    if (chance(0.1)) spec.banned_ids = draw_ids(2);
    if (chance(0.1)) spec.banned_sequences = {draw_ids(2), {draw_ids(1)[0], draw_ids(1)[0]}};
  }
  if (chance(0.1)) spec.presence_penalty = 0.5f;
  if (chance(pin_probability_)) {
    spec.max_new_tokens = spec.min_new_tokens = 0;
    spec.pin.number = ++next_pin_;
  }
  return spec;
}

void Simulation::submit() {
  std::vector<SequenceSpec> unit;
  for (int64_t requests = chance(0.7) ? 1 : draw(1, 8); requests > 0; --requests) {
    SequenceSpec spec = draw_spec();
    const int64_t samples = spec.pin.number == 0 && chance(0.15) ? draw(2, 4) : 1;
    spec.group = next_group_++;
    for (int64_t sample = 0; sample < samples; ++sample) {
      spec.id = next_id_++;
      spec.sample_index = static_cast<uint32_t>(sample);
      unit.push_back(spec);
      Expected expected;
      expected.spec = spec;
      expected.submitted = clock_;
      expected.output = expected_output(spec, vocab_size_);
      const int64_t capacity = static_cast<int64_t>(config_.num_blocks) * config_.page_size;
      const auto slots = static_cast<int64_t>(spec.prompt->size() + expected.output.size());
      expected.may_be_too_large = slots - 1 > capacity || static_cast<int64_t>(spec.prompt->size()) > capacity;
      // Pinned prefixes take their share.
      if (pin_probability_ > 0) {
        expected.may_be_too_large |= slots - 1 > capacity / 4 - config_.page_size;
        const int64_t window_capacity = static_cast<int64_t>(config_.window_blocks) * config_.page_size;
        expected.may_be_too_large |= config_.window > 0 && slots - 1 > window_capacity / 4 - config_.page_size;
      }
      live_.emplace(spec.id, std::move(expected));
    }
  }
  script_.ops.push_back({.kind = ScriptOp::Kind::kSubmit, .unit = unit, .numbers = {}});
  scheduler_->add(std::move(unit));
}

void Simulation::abort_some() {
  if (live_.empty() || !chance(abort_probability_)) return;
  auto it = std::next(live_.begin(), draw(0, static_cast<int64_t>(live_.size()) - 1));
  it->second.may_abort = true;
  script_.ops.push_back({.kind = ScriptOp::Kind::kAbort, .unit = {}, .numbers = {it->first}});
  scheduler_->abort(it->first, "aborted by the test");
  scheduler_->abort(next_id_ + 1000, "unknown");
}

void Simulation::check_batch(const Batch& batch) {
  int64_t prefills = 0, prefill_tokens = 0, decodes = 0;
  for (const BatchRow& row : batch.rows) {
    auto it = live_.find(row.sequence_id);
    if (it == live_.end()) fail("a row of a sequence that is no more");
    bool decode = row.q_len == 1 && row.kv_len > static_cast<int32_t>(it->second.spec.prompt->size());
    decode ? ++decodes : ++prefills;
    if (!decode) prefill_tokens += row.q_len;
  }
  if (static_cast<int64_t>(batch.rows.size()) > config_.max_running_requests) fail("more rows than allowed");
  if (config_.chunked_prefill_size > 0 && prefill_tokens > config_.chunked_prefill_size) fail("a chunk is too long");
  if (prefills > 1 && prefill_tokens > config_.max_prefill_tokens) fail("more prefill than allowed");
  if (prefills > 0 && decodes > 0) ++counts_.mixed_steps;
  counts_.copies += static_cast<int64_t>(batch.copies.size());
}

void Simulation::check_event(const SequenceEvent& event) {
  auto it = live_.find(event.sequence_id);
  if (it == live_.end()) fail("an event of a sequence that has ended");
  Expected& expected = it->second;
  const std::string who = "sequence " + std::to_string(event.sequence_id);
  for (const SampledToken& sampled : event.tokens) {
    if (expected.received >= expected.output.size()) fail(who + " goes on after its end");
    if (sampled.token != expected.output[expected.received]) {
      fail(who + " has a wrong token at " + std::to_string(expected.received));
    }
    ++expected.received;
  }
  if (event.completion_tokens != static_cast<int64_t>(expected.received)) fail(who + ": completion_tokens");
  if (event.prompt_tokens != static_cast<int64_t>(expected.spec.prompt->size())) fail(who + ": prompt_tokens");
  if (event.cached_tokens >= event.prompt_tokens) fail(who + ": the last token was not computed");
  if (!event.finish) return;
  if (event.finish->type == FinishReason::Type::kAbort) {
    ++counts_.aborted;
    const bool timed_out = event.finish->message.find("_timeout)") != std::string::npos;
    if (timed_out) {
      ++counts_.timeouts;
      const double limit = event.completion_tokens > 0 ? config_.running_timeout_seconds
                                                       : std::max(config_.waiting_timeout_seconds, 1.0);
      if (limit <= 0 || clock_ - expected.submitted < std::min(limit, 5.0)) fail(who + " timed out early");
    } else if (event.finish->message.find("three quarters") != std::string::npos && expected.spec.pin.number != 0) {
      ++counts_.pins_refused;
    } else if (expected.may_be_too_large) {
      ++counts_.too_large;
    } else if (!expected.may_abort) {
      fail(who + " was aborted: " + event.finish->message);
    }
  } else {
    ++counts_.finished;
    counts_.cached_tokens += event.cached_tokens;
    if (expected.received != expected.output.size()) fail(who + " ended early");
    if (expected.spec.pin.number != 0) {
      ++counts_.pins;
      pins_.push_back(expected.spec.pin.number);
    }
    const std::vector<int32_t>& stop_ids = expected.spec.stop_ids;
    bool stopped = !expected.output.empty() &&
                   std::find(stop_ids.begin(), stop_ids.end(), expected.output.back()) != stop_ids.end();
    if ((event.finish->type == FinishReason::Type::kStop) != stopped) fail(who + ": finish_reason");
    if (!stopped && event.finish->length != event.completion_tokens) fail(who + ": finish_reason length");
    std::vector<int32_t> whole = *expected.spec.prompt;
    whole.insert(whole.end(), expected.output.begin(), expected.output.end());
    if (history_.size() < 20) {
      history_.push_back(whole);
    } else {
      history_[draw(0, 19)] = whole;
    }
  }
  live_.erase(it);
}

const Batch* Simulation::plan(ScriptOp::Kind kind) {
  acquires_ = 0;
  script_.ops.push_back({.kind = kind, .unit = {}, .numbers = {}});
  const Batch* const batch = kind == ScriptOp::Kind::kAhead ? scheduler_->schedule_ahead() : scheduler_->schedule();
  if (options_.check_integrity) scheduler_->check_integrity();
  return batch;
}

void Simulation::commit() {
  if (in_flight_ == nullptr) return;
  script_.ops.push_back({.kind = ScriptOp::Kind::kCommit, .unit = {}, .numbers = {}});
  const Batch& batch = *std::exchange(in_flight_, nullptr);
  for (size_t i = 0; i < result_.sampled.size(); ++i) {
    const uint64_t id = batch.rows[batch.sampling_rows[i]].sequence_id;
    counts_.wasted_rows += !live_.contains(id);
    if (!chance(invalid_probability_)) continue;
    result_.sampled[i] = {};
    result_.sampled[i].invalid = true;
    if (live_.contains(id)) live_.at(id).may_abort = true;
    script_.ops.back().numbers.push_back(id);
  }
  scheduler_->commit(result_);
  if (options_.check_integrity) scheduler_->check_integrity();
  take_events();
}

void Simulation::take_events() {
  for (SequenceEvent& event : scheduler_->take_events()) events_.push_back(std::move(event));
}

void Simulation::run_batch(const Batch& batch, bool adding) {
  check_batch(batch);
  ++counts_.steps;
  if (adding) abort_some();
  bool fails = chance(fail_probability_);
  if (!fails) device_->launch(batch);
  commit();
  // What a row wrote in vain must matter to nobody.
  const auto is_wasted = [&](const BatchRow& row) {
    return std::any_of(events_.begin(), events_.end(), [&](const SequenceEvent& event) {
      return event.sequence_id == row.sequence_id && event.finish;
    });
  };
  if (!fails && std::any_of(batch.rows.begin(), batch.rows.end(), is_wasted)) fails = chance(20 * fail_probability_);
  if (fails) {
    script_.ops.push_back({.kind = ScriptOp::Kind::kFail, .unit = {}, .numbers = {}});
    device_->spoil(batch);
    for (const BatchRow& row : batch.rows) live_.at(row.sequence_id).may_abort |= !is_wasted(row);
    scheduler_->fail(batch.step, "the device failed");
    ++counts_.failed_steps;
    if (options_.check_integrity) scheduler_->check_integrity();
    return;
  }
  result_ = device_->sample(batch);
  if (witness_) witness_(batch, *device_);
  in_flight_ = &batch;
  if (!options_.overlap) commit();
}

void Simulation::step(bool adding) {
  if (adding && live_.size() < 40 && chance(add_probability_)) submit();
  if (adding) abort_some();
  if (!pins_.empty() && (!adding || pins_.size() > 3 || chance(0.05))) {
    const auto which = pins_.begin() + draw(0, static_cast<int64_t>(pins_.size()) - 1);
    script_.ops.push_back({.kind = ScriptOp::Kind::kUnpin, .unit = {}, .numbers = {*which}});
    scheduler_->unpin(*which);
    pins_.erase(which);
  }
  clock_ += 1;
  acquire_failed_ = false;
  const Batch* batch = in_flight_ != nullptr ? plan(ScriptOp::Kind::kAhead) : nullptr;
  counts_.ahead_steps += batch != nullptr;
  if (batch == nullptr) {
    commit();
    batch = plan(ScriptOp::Kind::kSchedule);
  }
  if (batch) run_batch(*batch, adding);
  take_events();
  const std::vector<SequenceEvent> events = std::exchange(events_, {});
  if (!batch && events.empty() && scheduler_->has_work() && !acquire_failed_) fail("work waits, but nothing runs");
  for (const SequenceEvent& event : events) check_event(event);
  if (live_.empty() == scheduler_->has_work()) fail("has_work is wrong");
}

SimulationCounts Simulation::run() {
  // Steps without work do not count, so that every world does the steps it was asked for.
  for (int64_t round = 0; counts_.steps < options_.steps && round < 100 * options_.steps; ++round) step(true);
  for (int64_t round = 0; scheduler_->has_work(); ++round) {
    if (round > 100000) fail("does not come to an end");
    step(false);
  }
  commit();  // rows that nobody wants
  if (!events_.empty()) fail("an event after all ends");
  for (const uint64_t pin : pins_) scheduler_->unpin(pin);
  SchedulerStats stats = scheduler_->stats();
  if (stats.blocks_pinned != 0) fail("pins are left");
  if (stats.blocks_free + stats.blocks_cached != stats.blocks_total) fail("blocks are lost");
  if (stats.window_blocks_free + stats.window_blocks_cached != stats.window_blocks_total) {
    fail("window blocks are lost");
  }
  counts_.window_evictions = stats.window_evictions;
  if (stats.requests != stats.finished + stats.aborted) fail("requests are lost");
  counts_.retractions = stats.retractions;
  counts_.preemptions = stats.preemptions;
  counts_.evictions = stats.evictions;
  if (!scheduler_->flush_cache()) fail("the cache was not flushed");
  if (scheduler_->stats().blocks_free != stats.blocks_total) fail("blocks are lost after the flush");
  if (scheduler_->stats().window_blocks_free != stats.window_blocks_total) {
    fail("window blocks are lost after the flush");
  }
  scheduler_->check_integrity();
  return counts_;
}

SimulationCounts simulate(uint64_t first_seed, int64_t steps, bool check_integrity, bool overlap) {
  SimulationCounts total;
  for (uint64_t seed = first_seed; total.steps < steps; ++seed) {
    SimulationOptions options;
    options.seed = seed;
    options.check_integrity = check_integrity;
    options.overlap = overlap;
    Simulation simulation(options);
    try {
      total.add(simulation.run());
    } catch (const std::exception& error) {
      std::string what = "seed " + std::to_string(seed) + ": " + error.what();
      // With integrity checks a failure is cut down; without, what is told is only that there is one.
      if (check_integrity && !replay(simulation.script()).empty()) {
        const Script script = shrink(simulation.script());
        what += "\nfails, too (" + replay(script) + "); keep it in tests/scenarios/scripts:\n" + to_text(script);
      }
      throw Violation(what);
    }
  }
  return total;
}

}  // namespace tokenmill::testing
