#include "apps/signals.h"

#include <pthread.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>

#include "lib/core/error.h"
#include "lib/core/log.h"

namespace mpinfer::apps {
namespace {

sigset_t watched() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGUSR1, SIGTERM, SIGHUP, SIGINT}) sigaddset(&set, signal);
  return set;
}

}  // namespace

void block_signals() {
  const sigset_t set = watched();
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

void unblock_signals() {
  const sigset_t set = watched();
  ::pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

SignalWatch::SignalWatch(job::StopControl& control, double drain_seconds, bool speaks)
    : control_(control), drain_seconds_(drain_seconds), speaks_(speaks) {
  thread_ = std::thread([this] { watch(); });
}

SignalWatch::~SignalWatch() {
  stop_ = true;
  thread_.join();
}

void SignalWatch::watch() {
  const sigset_t set = watched();
  const timespec patience{0, 50'000'000};  // to look at stop_
  while (!stop_) {
    switch (::sigtimedwait(&set, nullptr, &patience)) {
      case SIGUSR1:
        drain("SIGUSR1");
        break;
      case SIGINT:
        interrupt();
        break;
      case SIGTERM:
      case SIGHUP:
        terminate();
        break;
      default:
        break;
    }
  }
}

void SignalWatch::drain(const char* why) {
  if (speaks_ && control_.level() == job::StopLevel::kNone) {
    spdlog::info("{}: no more rows are admitted; running ones have {:.0f} s to end", why,
                 drain_seconds_);
  }
  const auto now = job::StopControl::Clock::now();
  control_.set_times(now,
                     now + std::chrono::milliseconds(static_cast<int64_t>(drain_seconds_ * 1e3)));
}

void SignalWatch::terminate() {
  // A launcher may kill this process a second from now: first what is finished, then the rest.
  if (!control_.flush()) ::_exit(static_cast<int>(ExitCode::kStopped));
  if (speaks_) spdlog::info("SIGTERM: finished rows are durable; running ones are given up");
  control_.cancel();
}

void SignalWatch::interrupt() {
  if (++num_interrupts_ > 1) {
    control_.flush();
    ::_exit(static_cast<int>(ExitCode::kStopped));
  }
  if (speaks_) {
    spdlog::info("interrupted: running rows are finished first; interrupt again to leave at once");
  }
  control_.drain();
}

}  // namespace mpinfer::apps
