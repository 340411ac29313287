// What a wait loop does between two looks. It yields while yielding is cheap, so that ranks which
// share a core hand it on at once. On a core that others want it is not: each sched_yield costs
// their time slices, milliseconds, and a sum over ranks is two waits a layer. Who has met that
// looks on for longer than a message takes between two ranks that run, and then sleeps, because a
// timer brings a thread back before its turn. The MPI library must not yield meanwhile (KeepsCore
// in mpi_handle.h).
#pragma once

#include <chrono>
#include <thread>

namespace mpinfer::comm {

class Pause {
 public:
  void operator()() const {
    const auto now = Clock::now();
    const auto waited = now - start_;
    if (waited >= (now < contended_until_ ? kMessage : kEager)) {
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    } else if (now >= contended_until_) {
      std::this_thread::yield();
      const auto after = Clock::now();
      if (after - now > kTimeSlice) contended_until_ = after + kMemory;
    }
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::microseconds kMessage{100};
  static constexpr std::chrono::microseconds kEager{2000};
  static constexpr std::chrono::microseconds kTimeSlice{2500};  // of Linux from 8 CPUs on: 2.8 ms
  static constexpr std::chrono::milliseconds kMemory{200};      // then a yield is tried again
  inline static thread_local Clock::time_point contended_until_;
  Clock::time_point start_ = Clock::now();
};

}  // namespace mpinfer::comm
