#include "tokenmill/stream.h"

#include <utility>

#include "engine/stream_impl.h"

namespace tokenmill {

bool StreamQueue::push(Output&& output) {
  {
    const std::lock_guard lock(mutex);
    if (output.finished()) --unfinished;
    if (dropped) return false;
    outputs.push_back(std::move(output));
  }
  arrived.notify_all();
  return true;
}

void StreamQueue::fail(const Error& cause) {
  {
    const std::lock_guard lock(mutex);
    error = cause;
  }
  arrived.notify_all();
}

Stream::Impl::~Impl() {
  {
    const std::lock_guard lock(queue_->mutex);
    queue_->dropped = true;
    queue_->outputs.clear();
  }
  abort();
}

std::optional<Output> Stream::Impl::next(std::optional<std::chrono::milliseconds> timeout) {
  StreamQueue& queue = *queue_;
  std::unique_lock lock(queue.mutex);
  const auto ready = [&] { return !queue.outputs.empty() || queue.unfinished == 0 || queue.error; };
  if (!ready()) {
    // The thread that fills the queue cannot wait for it.
    const auto core = core_.lock();
    if (core && core->on_output_thread()) {
      throw Error(ErrorKind::kRuntime, "Stream::next() cannot wait inside on_output.");
    }
  }
  if (!timeout) {
    queue.arrived.wait(lock, ready);
  } else if (!queue.arrived.wait_for(lock, *timeout, ready)) {
    return std::nullopt;
  }
  if (!queue.outputs.empty()) {
    std::optional<Output> output(std::move(queue.outputs.front()));
    queue.outputs.pop_front();
    return output;
  }
  if (queue.unfinished > 0 && queue.error) throw *queue.error;
  return std::nullopt;
}

bool Stream::Impl::done() const {
  const std::lock_guard lock(queue_->mutex);
  return queue_->outputs.empty() && (queue_->unfinished == 0 || queue_->error);
}

void Stream::Impl::abort() {
  {
    const std::lock_guard lock(queue_->mutex);
    if (queue_->unfinished == 0 || queue_->error) return;
  }
  if (const auto core = core_.lock()) core->abort_call(*call_);
}

Stream::Stream(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Stream::Stream(Stream&&) noexcept = default;
Stream& Stream::operator=(Stream&&) noexcept = default;
Stream::~Stream() = default;

std::optional<Output> Stream::next() { return impl_->next(std::nullopt); }
std::optional<Output> Stream::next_for(std::chrono::milliseconds timeout) { return impl_->next(timeout); }
bool Stream::done() const { return impl_->done(); }
void Stream::abort() { impl_->abort(); }

}  // namespace tokenmill
