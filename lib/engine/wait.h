// The one wait loop: polls what is waited for, lets other transfers progress, keeps the deadline's
// watch armed, and gives the core away when nothing happens (ranks may share it).
#pragma once

#include <chrono>
#include <functional>
#include <vector>

#include "lib/comm/pause.h"
#include "lib/comm/watch.h"

namespace mpinfer::engine {

class WaitLoop {
 public:
  explicit WaitLoop(comm::Watch& watch) : watch_(watch) {}

  // Called at every turn of every wait: control records, earlier sends.
  void also_poll(std::function<void()> poll) { polls_.push_back(std::move(poll)); }

  // Until ready() is true. what and plan name the wait in the deadline's report.
  template <class Ready>
  void until(const char* what, int64_t plan, Ready ready) {
    if (ready()) return;
    const auto armed = watch_.arm(what, plan);
    const auto start = std::chrono::steady_clock::now();
    for (const comm::Pause pause; !ready(); pause()) {
      for (const auto& poll : polls_) poll();
      watch_.check();
    }
    waited_ += std::chrono::steady_clock::now() - start;
  }

  double waited_seconds() const { return std::chrono::duration<double>(waited_).count(); }

 private:
  comm::Watch& watch_;
  std::vector<std::function<void()>> polls_;
  std::chrono::steady_clock::duration waited_{};
};

}  // namespace mpinfer::engine
