// The loop: the picture of docs/ARCHITECTURE.md, one function a line.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <new>
#include <utility>

#include "base/check.h"
#include "engine/engine_core.h"

namespace tokenmill {

void EngineCore::run() {
  try {
    while (wait_for_work()) check_progress(step());
  } catch (const std::exception& error) {
    die(error.what());
  } catch (...) {
    die("an unknown exception");
  }
}

bool EngineCore::wait_for_work() {
  std::unique_lock lock(inbox_.mutex);
  const auto ready = [&] {
    return inbox_.stopping || !inbox_.units.empty() || !inbox_.aborts.empty() || !inbox_.tasks.empty();
  };
  if (!scheduler_->has_work() && !in_flight_) inbox_.arrived.wait(lock, ready);
  return !inbox_.stopping;
}

// With overlap_ a turn launches a step and commits the one before:
//
//   device        [forward 1][sample 1][forward 2          ][sample 2][forward 3          ][sample 3]
//   this thread   … launch 2, wait 1, commit 1, launch sample 2, publish 1 | plan 3, launch 3, wait 2, commit 2, …
//
// Masks and penalties see all tokens before theirs: sampling is launched after the commit, while forward still runs.
bool EngineCore::step() {
  TM_CHECK(scheduler_ != nullptr);
  clock_.begin_step();
  const bool committed = in_flight_.has_value();
  admit();
  clock_.end_part(StepClock::kAdmit);
  const Batch* batch = in_flight_ ? scheduler_->schedule_ahead() : nullptr;
  if (batch == nullptr) {
    finish_step();
    batch = scheduler_->schedule();
  }
  clock_.end_part(StepClock::kSchedule);
  if (batch != nullptr) execute(*batch);
  if (check_every_step_) scheduler_->check_integrity();
  const bool told = publish();
  clock_.end_part(StepClock::kPublish);
  if (batch != nullptr) measure_step(*batch);
  clock_.end_step(batch != nullptr);
  if (args_.show_time_cost) {
    if (const auto line = clock_.report(args_.decode_log_interval)) logger_.info(*line);
  }
  return batch != nullptr || committed || told;
}

// A scheduler that has work, runs nothing and ends nothing would spin for ever.
void EngineCore::check_progress(bool progressed) {
  static constexpr int64_t kIdleTurnsMax = 1000;
  idle_turns_ = progressed || !scheduler_->has_work() ? 0 : idle_turns_ + 1;
  TM_CHECK(idle_turns_ < kIdleTurnsMax);
}

void EngineCore::admit() {
  std::vector<AdmissionUnit> units;
  std::vector<std::shared_ptr<RequestState>> aborts;
  std::vector<std::packaged_task<bool()>> tasks;
  {
    const std::lock_guard lock(inbox_.mutex);
    units.swap(inbox_.units);
    aborts.swap(inbox_.aborts);
    tasks.swap(inbox_.tasks);
    inbox_.queued += std::exchange(inbox_.waiting, 0);
  }
  for (AdmissionUnit& unit : units) {
    std::vector<SequenceSpec> specs;
    for (Admission& admission : unit) {
      admission.state->first_sequence_id = next_sequence_id_;
      for (SequenceSpec& spec : admission.specs) {
        spec.id = next_sequence_id_++;
        sequences_.emplace(spec.id, LiveSequence{.state = admission.state, .sample = int64_t{spec.sample_index}});
        if (trace_) {
          trace_->request_queued(spec.id, admission.state->rid, admission.state->submitted.time_since_epoch().count(),
                                 static_cast<int64_t>(spec.prompt->size()));
        }
        specs.push_back(std::move(spec));
      }
    }
    scheduler_->add(std::move(specs));
    // An abort may have come before the request did.
    for (const Admission& admission : unit) {
      if (admission.state->abort_requested) aborts.push_back(admission.state);
    }
  }
  for (const auto& state : aborts) {
    if (state->first_sequence_id == 0) continue;
    for (int64_t i = 0; i < state->num_samples; ++i) {
      scheduler_->abort(state->first_sequence_id + static_cast<uint64_t>(i), "The request was aborted.");
    }
  }
  if (!tasks.empty()) finish_step();  // they may look at anything
  for (std::packaged_task<bool()>& task : tasks) task();
}

bool EngineCore::flush_between_steps() {
  if (scheduler_->flush_cache()) {
    logger_.info("Cache flushed successfully!");
    return true;
  }
  const SchedulerStats stats = scheduler_->stats();
  logger_.warning(fmt::format("Cache not flushed because there are pending requests. #queue-req: {}, #running-req: {}",
                              stats.queue, stats.running));
  return false;
}

// What work throws, where that ends a step's requests only; what breaks an invariant or the device, or runs out of
// memory, ends the engine.
std::optional<std::string> EngineCore::failure_of(const std::function<void()>& work) const {
  try {
    work();
  } catch (const InvariantError&) {
    throw;
  } catch (const DeviceError&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& error) {
    return error.what();
  }
  return std::nullopt;
}

// Launches one step. Commits the one before it, if that is still in flight, else this one itself.
void EngineCore::execute(const Batch& batch) {
  std::optional<ModelRunner::InFlight> launched;
  std::optional<std::string> failure = failure_of([&] { launched = runner_->forward(batch); });
  clock_.end_part(StepClock::kForward);
  finish_step();
  // Edits wait for the forward pass; what has been committed should not.
  const auto has_edit = [](const SamplingRow& row) { return row.logit_edit != nullptr; };
  if (overlap_ && std::ranges::any_of(batch.sampling, has_edit)) {
    publish();
    clock_.end_part(StepClock::kPublish);
  }
  if (!failure) failure = failure_of([&] { runner_->sample(*launched, batch.sampling); });
  if (failure) {
    logger_.error(fmt::format("Step {} failed, its requests end: {}", batch.step, *failure));
    scheduler_->fail(batch.step, "The forward pass failed: " + *failure);
    clock_.end_part(StepClock::kForward);
    return;
  }
  clock_.end_part(overlap_ ? StepClock::kForward : StepClock::kSample);
  in_flight_ = std::move(launched);
  if (!overlap_) finish_step();
}

// Waits for the step in flight, if any, and commits it.
void EngineCore::finish_step() {
  if (!in_flight_) return;
  const StepResult result = runner_->wait(std::move(*in_flight_));
  in_flight_.reset();
  clock_.end_part(StepClock::kSample);
  scheduler_->commit(result);
  clock_.end_part(StepClock::kCommit);
}

bool EngineCore::publish() {
  std::vector<SequenceEvent> events = scheduler_->take_events();
  std::vector<Delta> deltas;
  deltas.reserve(events.size());
  const auto now = std::chrono::steady_clock::now();
  for (SequenceEvent& event : events) {
    const auto found = sequences_.find(event.sequence_id);
    TM_CHECK(found != sequences_.end());
    measure(event, found->second, now);
    const int64_t sample = found->second.sample;
    const std::shared_ptr<RequestState> state = found->second.state;
    if (event.finish) sequences_.erase(found);
    deltas.push_back({.request = state, .sample = sample, .event = std::move(event)});
  }
  const SchedulerStats stats = scheduler_->stats();
  {
    const std::lock_guard lock(stats_mutex_);
    scheduler_stats_ = stats;
    told_metrics_ = metrics_;
  }
  bool room = false;
  {
    const std::lock_guard lock(inbox_.mutex);
    room = stats.queue < inbox_.queued;
    inbox_.queued = stats.queue;
  }
  if (room) inbox_.room.notify_all();
  const bool told = !deltas.empty();
  outputs_.post(std::move(deltas));
  return told;
}

}  // namespace tokenmill
