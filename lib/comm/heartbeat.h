// Heartbeat: every rank tells the next one, once a second, that it lives and what it is doing, and
// listens to the one before it. A rank that is silent for the step deadline is named with its host,
// what it was doing and the rows it holds. Only the main thread beats, from its wait loops and
// turns; a rank whose steps are long by themselves is given four of them.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "lib/comm/mpi.h"

namespace mpinfer::comm {

struct ReplicaRows {  // of one replica; num_rows 0: none, or any (dynamic)
  int64_t first = 0;
  int64_t last = 0;
  int64_t num_rows = 0;
};

class Heartbeat {
 public:
  Heartbeat(const HostComm& world, double first_seconds, double step_seconds);
  ~Heartbeat();

  // rows: by replica, of replica_ranks ranks each.
  void set_rows(std::vector<ReplicaRows> rows, int replica_ranks);
  // From now on the deadline of a step holds for this rank; false: the longer one of start and end.
  void set_stepping(bool stepping);
  // Cheap when nothing is due. label: what this rank does, a literal. Throws Error(kPeerFailure).
  void poll(const char* label, int64_t step);

 private:
  using Clock = std::chrono::steady_clock;
  struct Beat {
    std::array<char, 64> host = {};
    std::array<char, 48> label = {};
    int64_t step = -1;
    double longest_turn = 0.0;  // seconds between two of its polls
    int64_t stepping = 0;
  };
  void send(const char* label, int64_t step);
  void receive();
  double patience() const;
  std::string verdict(double silent) const;

  HostComm world_;
  double first_seconds_;
  double step_seconds_;
  std::vector<ReplicaRows> rows_;
  int replica_ranks_ = 1;
  bool stepping_ = false;
  bool changed_ = true;
  double longest_turn_ = 0.0;
  Clock::time_point last_poll_;
  Clock::time_point last_sent_;
  Clock::time_point last_heard_;
  Beat outgoing_;
  Beat heard_;
  std::unique_ptr<HostRequest> under_way_;
};

}  // namespace mpinfer::comm
