// Prompts that stay in the cache: a request that generates nothing and whose lock on the tree outlives it.
#include "engine/pinned_prefix.h"

#include <utility>

namespace tokenmill {

std::pair<uint64_t, int64_t> EngineCore::pin(Request request, bool brief) {
  if (args_.disable_radix_cache) {
    throw Error(ErrorKind::kValue, "pin() needs the radix cache, and the engine has disable_radix_cache=True.");
  }
  if (outputs_.on_this_thread()) throw Error(ErrorKind::kRuntime, "pin() cannot wait inside on_output.");
  request.sampling_params = {};
  request.sampling_params.max_new_tokens = 0;
  request.stream = false;
  auto promise = std::make_shared<std::promise<Output>>();
  std::future<Output> future = promise->get_future();
  auto call = std::make_shared<Call>();
  call->on_output = [promise](Output&& output) {
    promise->set_value(std::move(output));
    return true;
  };
  call->on_failure = [promise](const Error& error) { promise->set_exception(std::make_exception_ptr(error)); };
  const uint64_t pin = next_pin_++;
  std::vector<Request> requests;
  requests.push_back(std::move(request));
  submit(std::move(requests), std::move(call), /*single=*/true, {pin, brief});
  const Output output = future.get();
  const FinishReason& reason = *output.meta_info.finish_reason;
  if (reason.type == FinishReason::Type::kAbort) throw Error(ErrorKind::kValue, reason.message);
  return {pin, output.meta_info.prompt_tokens};
}

void EngineCore::unpin(uint64_t pin) {
  {
    const std::lock_guard lock(inbox_.mutex);
    if (inbox_.stopping) return;
    inbox_.tasks.emplace_back([this, pin] {
      scheduler_->unpin(pin);
      return true;
    });
  }
  inbox_.arrived.notify_one();
}

PinnedPrefix::PinnedPrefix(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
PinnedPrefix::PinnedPrefix(PinnedPrefix&&) noexcept = default;
PinnedPrefix& PinnedPrefix::operator=(PinnedPrefix&&) noexcept = default;
PinnedPrefix::~PinnedPrefix() = default;

int64_t PinnedPrefix::tokens() const { return impl_ ? impl_->tokens() : 0; }
void PinnedPrefix::release() {
  if (impl_) impl_->release();
}

}  // namespace tokenmill
