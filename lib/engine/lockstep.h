// Lockstep: how replicas that share out experts keep step. The ranks of one place (stage, tp) in
// every member exchange a small record of each plan before they launch it, by a nonblocking host
// all-gather while the plan before still runs on the device; the collectives inside the model take
// their sizes from it. All leave at the first plan for which every member says it has no more work.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "lib/comm/mpi.h"

namespace mpinfer::engine {

struct LockstepRecord {
  int64_t plan = 0;
  int64_t rows = 0;
  uint8_t draining = 0;
  uint8_t no_more_work = 0;
  uint8_t reserved[6] = {};
};

class LockstepChannel {
 public:
  explicit LockstepChannel(const comm::HostComm& members);

  bool alone() const { return members_.size() == 1; }
  int size() const { return members_.size(); }
  int rank() const { return members_.rank(); }
  // In plan order on every member; one at a time.
  void post(const LockstepRecord& mine);
  bool ready();  // makes progress
  // The records by member, once ready. Throws Error(kPeerFailure) where members are at different
  // plans.
  const std::vector<LockstepRecord>& take();

 private:
  comm::HostComm members_;
  std::vector<LockstepRecord> records_;
  std::unique_ptr<comm::HostRequest> request_;
};

}  // namespace mpinfer::engine
