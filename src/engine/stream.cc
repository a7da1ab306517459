#include "tokenmill/stream.h"

#include <utility>

#include "engine/stream_impl.h"

namespace tokenmill {

// The waiter is taken out together with what it waits for: a coroutine that has read on and waits anew meanwhile is
// not woken for what it already has.
StreamQueue::Wakeup StreamQueue::take_waiter() { return {std::exchange(waiter, nullptr), executor}; }

void StreamQueue::wake(const Wakeup& wakeup) {
  arrived.notify_all();
  if (wakeup.waiter == nullptr) return;
  if (wakeup.run) {
    wakeup.run([waiting = wakeup.waiter] { waiting->resume(); });
  } else {
    wakeup.waiter->resume();
  }
}

bool StreamQueue::push(Output&& output) {
  Wakeup wakeup;
  {
    const std::lock_guard lock(mutex);
    if (output.finished()) --unfinished;
    if (dropped) return false;
    outputs.push_back(std::move(output));
    wakeup = take_waiter();
  }
  wake(wakeup);
  return true;
}

void StreamQueue::fail(const Error& cause) {
  Wakeup wakeup;
  {
    const std::lock_guard lock(mutex);
    error = cause;
    wakeup = take_waiter();
  }
  try {
    wake(wakeup);
  } catch (...) {
    // What a coroutine throws out of its resumption is its own; this thread has others to tell.
  }
}

std::optional<Output> StreamQueue::take() {
  if (!outputs.empty()) {
    std::optional<Output> output(std::move(outputs.front()));
    outputs.pop_front();
    return output;
  }
  if (unfinished > 0 && error) throw *error;
  return std::nullopt;
}

void StreamWaiter::resume() {
  if (void* const address = coroutine.exchange(nullptr)) std::coroutine_handle<>::from_address(address).resume();
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
  const auto ready = [&] { return queue.ready(); };
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
  return queue.take();
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

Stream::NextAwaiter Stream::next_async() { return NextAwaiter(impl_->queue()); }

void Stream::resume_on(Executor executor) {
  const std::lock_guard lock(impl_->queue()->mutex);
  impl_->queue()->executor = std::move(executor);
}

Stream::NextAwaiter::NextAwaiter(std::shared_ptr<StreamQueue> queue) : queue_(std::move(queue)) {}

Stream::NextAwaiter::~NextAwaiter() {
  if (waiter_ != nullptr) waiter_->coroutine = nullptr;
}

bool Stream::NextAwaiter::await_ready() const {
  const std::lock_guard lock(queue_->mutex);
  return queue_->ready();
}

bool Stream::NextAwaiter::await_suspend(std::coroutine_handle<> coroutine) {
  const std::shared_ptr<StreamQueue> queue = queue_;  // the coroutine, and this with it, may be gone on unlocking
  const std::lock_guard lock(queue->mutex);
  if (queue->ready()) return false;
  if (queue->waiter != nullptr && queue->waiter->coroutine != nullptr) {
    throw Error(ErrorKind::kRuntime, "Stream::next_async() is already being awaited.");
  }
  waiter_ = std::make_shared<StreamWaiter>();
  waiter_->coroutine = coroutine.address();
  queue->waiter = waiter_;
  return true;
}

std::optional<Output> Stream::NextAwaiter::await_resume() {
  const std::lock_guard lock(queue_->mutex);
  return queue_->take();
}

}  // namespace tokenmill
