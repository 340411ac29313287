// StopControl: what signals and clocks ask of a run, and what is made durable at once. Signals come
// to a thread of their own; the main thread looks at the level at every turn of the engine.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>

namespace mpinfer::job {

enum class StopLevel : uint8_t {
  kNone,
  kDrain,   // admit no more rows, finish the running ones
  kCancel,  // give up running rows too; their tokens are kept
};

class StopControl {
 public:
  using Clock = std::chrono::steady_clock;

  void drain() { raise(StopLevel::kDrain); }
  void cancel() { raise(StopLevel::kCancel); }
  // Drains at one time and cancels at another.
  void set_times(Clock::time_point drain_at, Clock::time_point cancel_at);
  StopLevel level() const;

  // What flush() does; called on another thread. Empty: nothing.
  void set_flush(std::function<void()> flush);
  // False: there is nothing yet that could be lost.
  bool flush();

 private:
  void raise(StopLevel level);

  std::atomic<StopLevel> level_ = StopLevel::kNone;
  std::atomic<Clock::time_point> drain_at_ = Clock::time_point::max();
  std::atomic<Clock::time_point> cancel_at_ = Clock::time_point::max();
  std::mutex mutex_;
  std::function<void()> flush_;
};

}  // namespace mpinfer::job
