#include "cli/interrupt.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <stdexcept>
#include <utility>

#include "cli/command.h"

namespace tokenmill::cli {
namespace {

// A signal handler can reach nothing but globals; these are lock-free and written here only.
std::atomic<bool> g_scope_alive{false};
std::atomic<bool> g_interrupted{false};
std::atomic<int> g_pipe_write{-1};
int g_pipe_read = -1;

constexpr char kInterrupt = 'i', kClose = 'c';

void handle_signal(int) {
  const int saved_errno = errno;
  if (!g_scope_alive.load() || g_interrupted.exchange(true)) _exit(kExitInterrupted);
  [[maybe_unused]] const ssize_t written = write(g_pipe_write.load(), &kInterrupt, 1);
  errno = saved_errno;
}

}  // namespace

void install_interrupt_handler() {
  struct sigaction action = {};
  action.sa_handler = handle_signal;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  // A closed pipe is an error of the write, which is reported, and no silent end.
  std::signal(SIGPIPE, SIG_IGN);
}

bool interrupted() { return g_interrupted.load(); }

InterruptScope::InterruptScope(std::function<void()> on_interrupt) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw std::runtime_error("cannot make a pipe for signals");
  g_pipe_read = ends[0];
  g_pipe_write = ends[1];
  thread_ = std::thread([on_interrupt = std::move(on_interrupt), end = ends[0]] {
    char byte = 0;
    while (true) {
      const ssize_t count = read(end, &byte, 1);
      if (count < 0 && errno == EINTR) continue;
      if (count != 1 || byte == kClose) return;
      on_interrupt();
    }
  });
  g_scope_alive = true;
}

InterruptScope::~InterruptScope() {
  g_scope_alive = false;
  [[maybe_unused]] const ssize_t written = write(g_pipe_write.load(), &kClose, 1);
  thread_.join();
  close(g_pipe_write.exchange(-1));
  close(g_pipe_read);
}

}  // namespace tokenmill::cli
