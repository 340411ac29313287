// Signals of a run, taken by a thread of their own so that a long step delays nothing. USR1: drain.
// TERM, HUP: make everything durable at once, then give up running rows. INT: drain; a second one
// leaves at once. They are blocked before MPI starts its threads; other commands let them through.
#pragma once

#include <atomic>
#include <thread>

#include "lib/job/stop_control.h"

namespace mpinfer::apps {

// Before any thread is started.
void block_signals();
// For commands that do not watch them.
void unblock_signals();

class SignalWatch {
 public:
  // drain_seconds: how long running rows may go on after USR1 before they are given up.
  SignalWatch(job::StopControl& control, double drain_seconds, bool speaks);
  ~SignalWatch();
  SignalWatch(const SignalWatch&) = delete;
  SignalWatch& operator=(const SignalWatch&) = delete;

 private:
  void watch();
  void drain(const char* why);
  void terminate();
  void interrupt();

  job::StopControl& control_;
  double drain_seconds_;
  bool speaks_;
  int num_interrupts_ = 0;
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

}  // namespace mpinfer::apps
