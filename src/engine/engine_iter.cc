// generate_iter: a lazy list in, outputs out, on the caller's thread, with a bounded number of requests in between.
#include <condition_variable>
#include <deque>
#include <exception>
#include <unordered_map>
#include <utility>

#include "engine/engine_impl.h"

namespace tokenmill {
namespace {

// Filled by the output thread.
struct Finished {
  std::mutex mutex;
  std::condition_variable arrived;
  std::deque<Output> outputs;
  std::optional<Error> error;
};

class LazyList {
 public:
  LazyList(EngineCore& core, const RequestSource& next, const OutputCallback& on_output)
      : core_(core),
        next_(next),
        on_output_(on_output),
        in_flight_max_(EngineCore::kWindowPrompts + static_cast<size_t>(*core.args().max_running_requests)) {
    in_flight_max_ = std::min(in_flight_max_, static_cast<size_t>(*core.args().max_queued_requests));
  }
  ~LazyList() {
    for (const auto& [index, item] : in_flight_) core_.abort(item.rid);
  }

  void run() {
    for (bool more = true; more || !in_flight_.empty();) {
      if (more && in_flight_.size() < in_flight_max_) more = pull();
      const bool wait = !in_flight_.empty() && (!more || in_flight_.size() >= in_flight_max_);
      if (!deliver(wait)) return;
    }
  }

 private:
  struct Item {
    std::string rid;
    int64_t samples = 1;
  };

  bool pull() {
    std::optional<Request> request = next_();
    if (!request) return false;
    const int64_t index = next_index_++, samples = std::max<int64_t>(1, request->sampling_params.n);
    auto call = std::make_shared<Call>();
    call->on_output = [finished = finished_, index](Output&& output) {
      output.index = index;
      {
        const std::lock_guard lock(finished->mutex);
        finished->outputs.push_back(std::move(output));
      }
      finished->arrived.notify_one();
      return true;
    };
    call->on_failure = [finished = finished_](const Error& error) {
      {
        const std::lock_guard lock(finished->mutex);
        finished->error = error;
      }
      finished->arrived.notify_one();
    };
    const std::string rid = request->rid.value_or("");
    try {
      in_flight_.emplace(index, Item{submit(*request, call), samples});
    } catch (const Error& error) {
      if (error.kind() == ErrorKind::kRuntime) throw;
      Output output;
      output.index = index;
      output.meta_info.id = rid;
      output.meta_info.finish_reason =
          FinishReason{.type = FinishReason::Type::kAbort, .length = 0, .matched = {}, .message = error.what()};
      in_flight_.emplace(index, Item{rid, 1});
      const std::lock_guard lock(finished_->mutex);
      finished_->outputs.push_back(std::move(output));
    }
    return true;
  }

  std::string submit(const Request& request, const std::shared_ptr<Call>& call) {
    while (true) {
      core_.wait_for_room();
      try {
        return core_.submit({request}, call, true).front();
      } catch (const Error& error) {
        if (std::string_view(error.what()) != EngineCore::kQueueFull) throw;  // another caller was faster
      }
    }
  }

  // Tells what has come; with `wait`, at least one. False: the caller wants no more.
  bool deliver(bool wait) {
    std::deque<Output> outputs;
    {
      std::unique_lock lock(finished_->mutex);
      if (wait) finished_->arrived.wait(lock, [&] { return !finished_->outputs.empty() || finished_->error; });
      outputs.swap(finished_->outputs);
      if (outputs.empty() && finished_->error) throw *finished_->error;
    }
    for (Output& output : outputs) {
      const auto item = in_flight_.find(output.index);
      if (output.finished() && --item->second.samples == 0) in_flight_.erase(item);
      if (!on_output_(std::move(output))) return false;
    }
    return true;
  }

  EngineCore& core_;
  const RequestSource& next_;
  const OutputCallback& on_output_;
  size_t in_flight_max_;
  std::shared_ptr<Finished> finished_ = std::make_shared<Finished>();
  std::unordered_map<int64_t, Item> in_flight_;
  int64_t next_index_ = 0;
};

}  // namespace

void Engine::generate_iter(const RequestSource& next, const OutputCallback& on_output) {
  const std::shared_ptr<EngineCore> core = impl_->core;
  if (core->on_output_thread()) {
    throw Error(ErrorKind::kRuntime, "generate_iter() cannot wait inside on_output; use submit().");
  }
  LazyList(*core, next, on_output).run();
}

}  // namespace tokenmill
