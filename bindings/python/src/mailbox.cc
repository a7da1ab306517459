#include "mailbox.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace tokenmill::python {

Mailbox::Mailbox(bool watched) {
  if (!watched) return;
  fd_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (fd_ < 0) throw Error(ErrorKind::kRuntime, std::string("eventfd failed: ") + std::strerror(errno));
}

Mailbox::~Mailbox() {
  if (fd_ >= 0) close(fd_);
}

void Mailbox::put(Mail mail) {
  bool wake = false;
  {
    const std::lock_guard lock(mutex_);
    if (mail.error) failed_ = true;
    mail_.push_back(std::move(mail));
    wake = ready(wanted_);
    if (fd_ >= 0 && mail_.size() == 1) {
      const uint64_t one = 1;
      (void)!write(fd_, &one, sizeof one);  // fails only where it is readable already
    }
  }
  if (wake) arrived_.notify_one();
}

std::vector<Mail> Mailbox::take() {
  const std::lock_guard lock(mutex_);
  if (fd_ >= 0) {
    uint64_t count = 0;
    (void)!read(fd_, &count, sizeof count);
  }
  failed_ = false;
  return std::exchange(mail_, {});
}

bool Mailbox::wait(size_t count, std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  wanted_ = count;
  return arrived_.wait_for(lock, timeout, [&] { return ready(count); });
}

size_t Mailbox::size() const {
  const std::lock_guard lock(mutex_);
  return mail_.size();
}

}  // namespace tokenmill::python
