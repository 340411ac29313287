#include "lib/comm/watch.h"

#include <fmt/core.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "lib/core/error.h"

namespace mpinfer::comm {

using Clock = std::chrono::steady_clock;

struct Watch::State {
  WatchOptions options;
  std::mutex mutex;
  std::condition_variable wake;
  bool stop = false;
  int depth = 0;
  const char* label = "";
  int64_t step = -1;
  Clock::time_point armed_at;
  double limit_seconds = 0.0;
  std::atomic<bool> expired = false;
  std::thread thread;

  std::string report() const {
    return fmt::format(
        "rank {} on {}: no progress for {:.1f} s in {}{} (--step-timeout {:g} s); a peer is dead, "
        "stopped or stuck",
        options.rank, options.host, limit_seconds, label,
        step >= 0 ? fmt::format(" at step {}", step) : std::string(), options.step_seconds);
  }
  void watch();
};

void Watch::State::watch() {
  std::unique_lock lock(mutex);
  while (!stop) {
    wake.wait_for(lock, std::chrono::milliseconds(100));
    if (depth == 0) continue;
    const double waited = std::chrono::duration<double>(Clock::now() - armed_at).count();
    // A neighbour that knows more may speak first.
    const double courtesy = options.heartbeat != nullptr ? options.grace_seconds / 2 : 0.0;
    if (waited > limit_seconds + courtesy) expired = true;
    if (waited > limit_seconds + options.grace_seconds) {
      const std::string line = "mpinfer: " + report() + "\n";
      if (options.last_words) options.last_words(report());
      [[maybe_unused]] const auto written = ::write(STDERR_FILENO, line.data(), line.size());
      ::_exit(static_cast<int>(ExitCode::kPeerFailure));
    }
  }
}

Watch::Watch(const WatchOptions& options) : state_(std::make_unique<State>()) {
  state_->options = options;
  state_->limit_seconds = options.first_seconds;
  state_->thread = std::thread([this] { state_->watch(); });
}

Watch::~Watch() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stop = true;
  }
  state_->wake.notify_all();
  state_->thread.join();
}

Watch::Armed Watch::arm(const char* label, int64_t step) {
  const std::lock_guard lock(state_->mutex);
  if (state_->depth++ == 0) {
    state_->label = label;
    state_->step = step;
    state_->armed_at = Clock::now();
    state_->expired = false;
  }
  return Armed(this);
}

Watch::Armed::~Armed() {
  const std::lock_guard lock(watch_->state_->mutex);
  --watch_->state_->depth;
}

void Watch::check() {
  if (Heartbeat* heartbeat = state_->options.heartbeat) {
    // Read without the lock by the one thread that writes them.
    heartbeat->poll(state_->depth > 0 ? state_->label : "its work", state_->step);
  }
  if (!state_->expired) return;
  const std::lock_guard lock(state_->mutex);
  throw Error(ExitCode::kPeerFailure, state_->report());
}

void Watch::first_step_done() {
  const std::lock_guard lock(state_->mutex);
  state_->limit_seconds = state_->options.step_seconds;
  if (state_->options.heartbeat != nullptr) state_->options.heartbeat->set_stepping(true);
}

void Watch::ending() {
  if (state_->options.heartbeat != nullptr) state_->options.heartbeat->set_stepping(false);
  check();
}

}  // namespace mpinfer::comm
