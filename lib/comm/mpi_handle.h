// Inside lib/comm only: what HostComm hides, and the check around every MPI call.
#pragma once

#include <mpi.h>

#include <source_location>
#include <span>
#include <utility>
#include <vector>

#include "lib/comm/mpi.h"

namespace mpinfer::comm {

struct HostComm::Handle {
  MPI_Comm comm = MPI_COMM_NULL;  // null: a communicator of one that needs no MPI
  int rank = 0;
  int size = 1;

  Handle() = default;
  explicit Handle(MPI_Comm owned);
  ~Handle();
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
};

// Where a lost rank ends the job these do nothing (lib/comm/ulfm).
// Returns when every member has made comm: Open MPI 5.0.11 crashes in one that is still making it
// when another has died or revokes it.
void wait_until_made(MPI_Comm comm);
void keep_in_mind(MPI_Comm comm, int size);  // to be revoked when a rank is lost
void forget(MPI_Comm comm);
// Revokes what is kept in mind if status says that a rank is lost.
void note_loss(int status);
// After a loss: waits until the library has let go of the requests' buffers, which are about to go.
void abandon(std::span<MPI_Request> requests);
// This process has gone on without a rank: the launcher may then wait for ever in MPI_Finalize.
bool has_lost_ranks();

// While it lives calls that find nothing do not yield, as Open MPI's do where ranks share cores:
// for wait loops (lib/comm/pause). Blocking calls may.
class KeepsCore {
 public:
  KeepsCore();
  ~KeepsCore();
  KeepsCore(const KeepsCore&) = delete;
  KeepsCore& operator=(const KeepsCore&) = delete;

 private:
  bool yielded_ = false;  // before
};

class MpiRequest : public HostRequest {
 public:
  explicit MpiRequest(std::vector<MPI_Request> requests) : requests_(std::move(requests)) {}
  ~MpiRequest() override { abandon(requests_); }
  MpiRequest(const MpiRequest&) = delete;
  MpiRequest& operator=(const MpiRequest&) = delete;
  bool test() override;

 private:
  std::vector<MPI_Request> requests_;
};

// Throws Error(kPeerFailure) with rank, host, call and the library's text.
void check_mpi(int status, const char* call,
               std::source_location where = std::source_location::current());

}  // namespace mpinfer::comm

#define MPINFER_MPI(call) ::mpinfer::comm::check_mpi((call), #call)
