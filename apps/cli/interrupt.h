// Ctrl-C: the first stops cleanly what an InterruptScope covers, a second (or one outside any scope) ends at once.
#pragma once

#include <functional>
#include <thread>

namespace tokenmill::cli {

// Call first in main. From then on SIGINT and SIGTERM exit with 130 unless a scope is alive.
void install_interrupt_handler();
bool interrupted();

// While alive, the first interrupt calls on_interrupt once, on a thread of the scope's own. One scope at a time.
class InterruptScope {
 public:
  explicit InterruptScope(std::function<void()> on_interrupt);
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;

 private:
  std::thread thread_;
};

}  // namespace tokenmill::cli
