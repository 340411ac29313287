// ControlRecord: everything a replica's ranks cannot work out from token ids. The leader posts one
// a plan; posted at plan g it is in force at plan g + lanes + 1 on every rank, itself included.
// ControlChannel carries it by nonblocking broadcasts.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "lib/comm/mpi.h"
#include "lib/core/request.h"

namespace mpinfer::engine {

struct StopVerdict {  // a stop string was seen in the text of sequence id
  int64_t sequence_id = 0;
};

struct ControlRecord {
  int64_t plan = 0;        // posted at
  bool no_more = false;    // no request comes after this record's
  bool drain = false;      // waiting sequences are given up, running ones finish
  bool cancel = false;     // with drain: running sequences are given up too
  uint64_t plan_hash = 0;  // StepPlan::hash of plan - 1 on the leader
  std::vector<Request> requests;
  std::vector<StopVerdict> verdicts;
};

std::string serialise(const ControlRecord& record);
// Throws Error(kInternal) for bytes that serialise() did not make.
ControlRecord deserialise(const std::string& bytes);

class ControlChannel {
 public:
  explicit ControlChannel(const comm::HostComm& replica);
  ~ControlChannel();

  bool leader() const { return headers_.rank() == 0; }
  // Posts the record of record.plan (leader) or the receive of the next one (others). In plan order
  // on every rank.
  void post(const ControlRecord& record);
  void expect();
  // Makes progress; true once the oldest record not yet taken is complete.
  bool ready();
  ControlRecord take();
  // True once nothing posted is under way: before the channel may go.
  bool quiet();

 private:
  struct Transfer;
  comm::HostComm headers_;   // one fixed-size header a record
  comm::HostComm payloads_;  // apart, since a follower posts header g + 1 before it knows the size
                             // of payload g
  std::deque<std::unique_ptr<Transfer>> transfers_;
};

}  // namespace mpinfer::engine
