#include "lib/job/stop_control.h"

#include <algorithm>
#include <utility>

namespace mpinfer::job {

void StopControl::raise(StopLevel level) {
  StopLevel now = level_;
  while (now < level && !level_.compare_exchange_weak(now, level)) {
  }
}

void StopControl::set_times(Clock::time_point drain_at, Clock::time_point cancel_at) {
  drain_at_ = std::min(drain_at_.load(), drain_at);
  cancel_at_ = std::min(cancel_at_.load(), cancel_at);
}

StopLevel StopControl::level() const {
  const auto now = Clock::now();
  const StopLevel by_time = now >= cancel_at_.load()  ? StopLevel::kCancel
                            : now >= drain_at_.load() ? StopLevel::kDrain
                                                      : StopLevel::kNone;
  return std::max(level_.load(), by_time);
}

void StopControl::set_flush(std::function<void()> flush) {
  const std::lock_guard lock(mutex_);
  flush_ = std::move(flush);
}

bool StopControl::flush() {
  const std::lock_guard lock(mutex_);
  if (!flush_) return false;
  flush_();
  return true;
}

}  // namespace mpinfer::job
